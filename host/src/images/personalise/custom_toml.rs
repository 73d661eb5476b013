//! `custom.toml`, which Raspberry Pi OS Bookworm reads at its first boot: a program that runs as the init of that boot,
//! if the kernel's command line says so. It renames the first account and knows one only; what it does not know is
//! written into the system directly.

use piman_core::install::personal::{Item, Place};
use toml::{Table, Value};

use super::draft::{Done, Work};
use super::profile::{Profile, User};
use super::subject::Occasion;
use super::user_conf;

/// The program of that first boot.
const INIT: &str = "init=/usr/lib/raspberrypi-sys-mods/firstboot";

pub(super) fn write(work: &mut Work<'_>) -> Done {
    // It reads nothing on a system that has been running, nor where the command line is not the card's.
    let reads = work.subject.is_disk && work.subject.occasion == Occasion::Install;
    if let Some(verbatim) = work.rest.custom_toml.take() {
        if !reads {
            return Err("custom-toml: this is read at the first boot of a disk image only".into());
        }
        for (name, content) in verbatim.files() {
            work.file(Place::Boot, &format!("/{name}"), 0o600, content.bytes())?;
        }
        return work.add(&Item::Word { key: "init", text: INIT });
    }
    if !reads {
        return Ok(());
    }
    let hostname = work.subject.facts.hostname.clone();
    let first = user_conf::take_first(&mut work.rest);
    let sections = sections(&mut work.rest, hostname, first.as_ref());
    if let Some(user) = &first {
        user_conf::complete(work, user);
    }
    if sections.is_empty() {
        return Ok(());
    }
    let mut all = Table::from_iter([("config_version".to_owned(), Value::Integer(1))]);
    all.extend(sections);
    let text = toml::to_string(&all).map_err(|e| format!("writing custom.toml: {e}"))?;
    work.file(Place::Boot, "/custom.toml", 0o600, text.as_bytes())?;
    work.add(&Item::Word { key: "init", text: INIT })
}

/// What it does of the profile.
fn sections(rest: &mut Profile, hostname: Option<String>, first: Option<&User>) -> Table {
    let mut all = Table::new();
    let mut put = |section: &str, key: &str, value: Value| {
        let section = all.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Some(section) = section.as_table_mut() {
            section.insert(key.to_owned(), value);
        }
    };
    let text = |text: &str| Value::String(text.to_owned());
    if let Some(name) = rest.hostname.take().and(hostname) {
        put("system", "hostname", text(&name));
    }
    if let Some(user) = first {
        put("user", "name", text(&user.name));
        if let Some(hash) = &user.password_hash {
            put("user", "password", text(hash.reveal()));
            put("user", "password_encrypted", Value::Boolean(true));
        }
    }
    let keys: Vec<Value> = first.into_iter().flat_map(|user| &user.ssh_keys).map(|key| text(key)).collect();
    if rest.ssh == Some(true) || !keys.is_empty() {
        put("ssh", "enabled", Value::Boolean(rest.ssh != Some(false)));
        put("ssh", "authorized_keys", Value::Array(keys));
    }
    if rest.ssh == Some(true) {
        rest.ssh = None;
    }
    if let Some(wifi) = rest.wifi.take() {
        put("wlan", "ssid", text(&wifi.ssid));
        put("wlan", "hidden", Value::Boolean(wifi.hidden));
        if let Some(psk) = &wifi.psk {
            put("wlan", "password", text(psk.reveal()));
            put("wlan", "password_encrypted", Value::Boolean(psk.reveal().len() == 64));
        }
        if let Some(country) = &wifi.country {
            put("wlan", "country", text(country));
        }
    }
    if let Some(keyboard) = rest.keyboard.take() {
        put("locale", "keymap", text(&keyboard));
    }
    if let Some(zone) = rest.timezone.take() {
        put("locale", "timezone", text(&zone));
    }
    all
}
