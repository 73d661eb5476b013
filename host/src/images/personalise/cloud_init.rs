//! Files for cloud-init, as its source NoCloud reads them. They are JSON, which is YAML that nothing has to be quoted
//! in.

use piman_core::install::personal::{Item, Place};
use serde_json::{Map, Value, json};

use super::accounts;
use super::draft::{Done, Work};
use super::profile::{Profile, Secret, Sudo, User, Wifi};
use super::subject::Occasion;

/// Where NoCloud looks first, in the root filesystem.
const SEED: &str = "/var/lib/cloud/seed/nocloud";

pub(super) fn write(work: &mut Work<'_>) -> Done {
    let installation = work.subject.installation;
    let instance = format!("piman-{installation}");
    let verbatim = work.rest.cloud_init.take();
    let given: Vec<(String, Vec<u8>)> = verbatim
        .iter()
        .flat_map(|verbatim| verbatim.files())
        .map(|(name, content)| (name.to_owned(), content.bytes().to_vec()))
        .collect();
    let is_given = |name: &str| given.iter().any(|(given, _)| given == name);
    let hostname = work.subject.facts.hostname.clone();
    let mut files = given.clone();
    if !is_given("user-data") {
        let data = user_data(work);
        if data.is_empty() && given.is_empty() && work.rest.wifi.is_none() {
            // The image has its own way to a first user, which stays.
            return Ok(());
        }
        // What a boot partition says itself stays if the profile has nothing in its place; elsewhere cloud-init finds
        // none of the files without this one.
        if !data.is_empty() || !work.subject.is_disk {
            files.push(("user-data".to_owned(), text(&Value::Object(data), "#cloud-config\n")?));
        }
    }
    if !is_given("meta-data") {
        let mut meta = Map::from_iter([("instance-id".to_owned(), json!(instance))]);
        meta.extend(hostname.map(|name| ("local-hostname".to_owned(), json!(name))));
        files.push(("meta-data".to_owned(), text(&Value::Object(meta), "")?));
    }
    if !is_given("network-config")
        && let Some(wifi) = work.rest.wifi.take()
    {
        files.push(("network-config".to_owned(), text(&network(&wifi), "")?));
    }
    // An image that brings its boot partition has it where its cloud-init looks for it.
    let in_boot = work.subject.is_disk;
    for (name, content) in files {
        let (place, path) =
            if in_boot { (Place::Boot, format!("/{name}")) } else { (Place::Root, format!("{SEED}/{name}")) };
        work.file(place, &path, 0o600, &content)?;
    }
    if work.subject.boots_from_card {
        work.add(&Item::Word { key: "ds", text: &format!("ds=nocloud;i={instance}") })?;
    }
    Ok(())
}

fn text(value: &Value, heading: &str) -> Result<Vec<u8>, String> {
    let text = serde_json::to_string_pretty(value).map_err(|e| format!("writing JSON: {e}"))?;
    Ok(format!("{heading}{text}\n").into_bytes())
}

/// What cloud-init does of the profile.
fn user_data(work: &mut Work<'_>) -> Map<String, Value> {
    let again = work.subject.occasion == Occasion::Again;
    let Profile { locale, timezone, keyboard, ntp, ssh, users, hostname, .. } = &mut work.rest;
    let mut data = Map::new();
    let mut put = |key: &str, value: Value| {
        data.insert(key.to_owned(), value);
    };
    if again {
        // A new instance would get new host keys.
        put("ssh_deletekeys", json!(false));
    }
    if let Some(name) = hostname.take().and(work.subject.facts.hostname.as_ref()) {
        put("hostname", json!(name));
        put("preserve_hostname", json!(false));
        put("manage_etc_hosts", json!("localhost"));
    }
    if let Some(locale) = locale.take() {
        put("locale", json!(&*locale));
    }
    if let Some(zone) = timezone.take() {
        put("timezone", json!(&*zone));
    }
    if let Some(layout) = keyboard.take() {
        put("keyboard", json!({ "layout": &*layout }));
    }
    if let Some(servers) = ntp.take() {
        let servers: Vec<&str> = servers.iter().map(|server| &**server).collect();
        put("ntp", json!({ "enabled": true, "servers": servers }));
    }
    // By a command: the key of that name does nothing in most versions.
    match ssh.take() {
        Some(true) => {
            let command = "systemctl enable --now ssh.service || systemctl enable --now sshd.service";
            put("runcmd", json!([["sh", "-c", command]]));
        }
        Some(false) => {
            let command = "systemctl disable --now ssh.service ssh.socket sshd.service || true";
            put("runcmd", json!([["sh", "-c", command]]));
        }
        None => {}
    }
    if !users.is_empty() {
        let has_password = users.iter().any(|user| user.password_hash.is_some() && !user.locked);
        put("ssh_pwauth", json!(has_password));
        put("users", users.iter().map(account).collect());
        // It changes none that are there already, which is done directly.
        if !again {
            users.clear();
        }
    }
    data
}

fn account(user: &User) -> Value {
    let mut account = Map::new();
    let mut put = |key: &str, value: Value| {
        account.insert(key.to_owned(), value);
    };
    put("name", json!(&*user.name));
    if let Some(full_name) = &user.full_name {
        put("gecos", json!(&**full_name));
    }
    if let Some(uid) = user.uid {
        put("uid", json!(uid));
    }
    if let Some(hash) = &user.password_hash {
        put("passwd", json!(hash.reveal()));
    }
    put("lock_passwd", json!(user.locked || user.password_hash.is_none()));
    put("shell", json!(user.shell.as_deref().unwrap_or("/bin/bash")));
    let groups = accounts::groups(user);
    if !groups.is_empty() {
        put("groups", json!(groups));
    }
    if !user.ssh_keys.is_empty() {
        put("ssh_authorized_keys", user.ssh_keys.iter().map(|key| json!(&**key)).collect());
    }
    if let Sudo::Without(_) = user.sudo {
        put("sudo", json!("ALL=(ALL) NOPASSWD:ALL"));
    }
    Value::Object(account)
}

/// A network configuration of version 2.
fn network(wifi: &Wifi) -> Value {
    let mut point = Map::new();
    if let Some(psk) = wifi.psk.as_ref().map(Secret::reveal) {
        point.insert("password".to_owned(), json!(psk));
    }
    if wifi.hidden {
        point.insert("hidden".to_owned(), json!(true));
    }
    let mut wlan = json!({ "dhcp4": true, "optional": true, "access-points": { &*wifi.ssid: point } });
    if let (Some(country), Some(wlan)) = (&wifi.country, wlan.as_object_mut()) {
        wlan.insert("regulatory-domain".to_owned(), json!(&**country));
    }
    json!({
        "version": 2,
        "ethernets": { "eth0": { "dhcp4": true, "optional": true } },
        "wifis": { "wlan0": wlan },
    })
}
