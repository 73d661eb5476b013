//! `dietpi.txt` and `dietpi-wifi.txt`, which DietPi reads at its first boot.

use piman_core::install::personal::Place;

use super::accounts;
use super::draft::{Done, Work};
use super::profile::{Profile, Secret};
use super::subject::Occasion;

const SETTINGS: &str = "/dietpi.txt";
const WIFI: &str = "/dietpi-wifi.txt";

pub(super) fn write(work: &mut Work<'_>) -> Done {
    if work.subject.occasion == Occasion::Again {
        return Ok(());
    }
    let hostname = work.subject.facts.hostname.clone();
    let Profile { hostname: pattern, locale, timezone, keyboard, ntp, ssh, wifi, .. } = &mut work.rest;
    let servers = ntp.take().map(|all| all.iter().map(|s| &**s).collect::<Vec<_>>().join(" "));
    let server = ssh.take().map(|is_on| if is_on { "-1" } else { "0" }.to_owned());
    let wifi = wifi.take();
    let country = wifi.as_ref().and_then(|wifi| wifi.country.as_deref()).map(str::to_owned);
    let settings = [
        ("AUTO_SETUP_NET_HOSTNAME", pattern.take().and(hostname)),
        ("AUTO_SETUP_LOCALE", locale.take().map(String::from)),
        ("AUTO_SETUP_TIMEZONE", timezone.take().map(String::from)),
        ("AUTO_SETUP_KEYBOARD_LAYOUT", keyboard.take().map(String::from)),
        ("CONFIG_NTP_MIRROR", servers),
        ("AUTO_SETUP_SSH_SERVER_INDEX", server),
        ("AUTO_SETUP_NET_WIFI_ENABLED", wifi.as_ref().map(|_| "1".to_owned())),
        ("AUTO_SETUP_NET_WIFI_COUNTRY_CODE", country),
    ];
    for (key, value) in settings {
        if let Some(value) = value {
            work.setting(Place::Boot, SETTINGS, key, &value)?;
        }
    }
    if let Some(wifi) = wifi {
        let psk = wifi.psk.as_ref().map_or("", Secret::reveal);
        let manager = if wifi.psk.is_some() { "WPA-PSK" } else { "NONE" };
        for (key, value) in
            [("aWIFI_SSID[0]", &*wifi.ssid), ("aWIFI_KEY[0]", psk), ("aWIFI_KEYMGR[0]", manager)]
        {
            // A shell reads it.
            work.setting(Place::Boot, WIFI, key, &format!("'{}'", value.replace('\'', "'\\''")))?;
        }
    }
    let (own, others) = std::mem::take(&mut work.rest.users)
        .into_iter()
        .partition(|user| matches!(&*user.name, "root" | "dietpi"));
    work.rest.users = others;
    let own: Vec<_> = own;
    for user in own {
        if user.password_hash.is_some() {
            return Err(format!(
                "account {}: DietPi sets its password itself, as AUTO_SETUP_GLOBAL_PASSWORD of its dietpi.txt says, which \
                 takes no hash: leave the password out, or name another account",
                user.name
            ));
        }
        accounts::one(work, &user, true)?;
    }
    Ok(())
}
