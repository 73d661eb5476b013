//! `piman devices` and `piman device`: what is known of the Pis, as tables and as JSON.

use std::fmt::Write as _;

use anyhow::bail;
use serde::Serialize;

use crate::state::{Device, DeviceEvent, State};
use crate::sys::clock::now_ms;
use crate::text::human::{self, bytes, clock, columns, since, when};

/// What `--json` prints of all devices.
#[derive(Debug, Serialize)]
struct Everything {
    /// The server's own alerts.
    alerts: Vec<DeviceEvent>,
    devices: Vec<Device>,
}

#[derive(Debug, Serialize)]
struct One {
    device: Device,
    events: Vec<DeviceEvent>,
}

/// All Pis.
///
/// # Errors
/// If the state cannot be read.
pub fn all(state: &dyn State, json: bool) -> anyhow::Result<String> {
    let everything = Everything { alerts: state.alerts()?, devices: state.devices()? };
    if json {
        return human::json(&everything);
    }
    let mut out = String::new();
    for alert in &everything.alerts {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{}: {} ({})", alert.kind, alert.text, when(alert.at_ms, now_ms()));
    }
    if everything.devices.is_empty() {
        out.push_str("no Pi was seen yet\n");
        return Ok(out);
    }
    let rows = everything.devices.iter().map(|d| {
        let mut stage = match &d.waits {
            Some(why) => format!("waits: {why}"),
            None => d.stage.clone().unwrap_or_else(|| "-".into()),
        };
        if d.reinstall_ordered {
            stage.push_str(", reinstall ordered");
        }
        if d.personalise_ordered {
            stage.push_str(", profile to be applied");
        }
        [
            d.key.clone(),
            d.address.clone(),
            stage,
            progress(d),
            d.image.as_deref().and_then(|i| i.get(..12)).unwrap_or("-").into(),
            when(d.last_seen_ms, now_ms()),
            d.last_error.clone().unwrap_or_else(|| "-".into()),
        ]
    });
    out.push_str(&columns(
        ["DEVICE", "ADDRESS", "STAGE", "PROGRESS", "IMAGE", "LAST SEEN", "LAST ERROR"],
        rows,
    ));
    Ok(out)
}

/// One Pi and what happened to it.
///
/// # Errors
/// If no Pi, or more than one, is called so, or the state cannot be read.
pub fn one(state: &dyn State, name: &str, json: bool) -> anyhow::Result<String> {
    let devices = state.devices()?;
    let named = crate::state::resolve::resolve(name, &devices)?.name;
    let called = |d: &&Device| {
        [d.serial.as_deref(), d.mac.as_deref(), Some(&d.address)].contains(&Some(&named)) || d.key == named
    };
    let Some(device) = devices.iter().find(called).cloned() else {
        bail!("{named} was not seen yet; `piman devices` shows those that were")
    };
    let events = state.events(&device.key)?;
    if json {
        return human::json(&One { device, events });
    }
    let mut out = String::new();
    let dash = |s: &Option<String>| s.clone().unwrap_or_else(|| "-".into());
    let size = |n| if n == 0 { "-".into() } else { bytes(n) };
    let rows = [
        ["serial".into(), dash(&device.serial)],
        ["hardware address".into(), dash(&device.mac)],
        ["address".into(), device.address.clone()],
        ["model".into(), dash(&device.model).replace('_', " ")],
        ["agent".into(), dash(&device.agent)],
        ["card".into(), size(device.disk_bytes)],
        ["on the disk".into(), on_the_disk(&device)],
        ["waits".into(), dash(&device.waits)],
        ["image on the card".into(), dash(&device.card)],
        ["image given".into(), dash(&device.image)],
        ["stage".into(), dash(&device.stage)],
        ["progress".into(), progress(&device)],
        ["reinstall ordered".into(), if device.reinstall_ordered { "yes" } else { "no" }.into()],
        [
            "profile ordered".into(),
            if device.personalise_ordered { "to be applied at the next boot" } else { "no" }.into(),
        ],
        ["number".into(), device.ordinal.map_or_else(|| "-".into(), |n| n.to_string())],
        ["host name".into(), dash(&device.hostname)],
        ["first seen".into(), clock(device.first_seen_ms)],
        [
            "last seen".into(),
            format!("{} ({})", clock(device.last_seen_ms), when(device.last_seen_ms, now_ms())),
        ],
        ["last error".into(), dash(&device.last_error)],
    ];
    for [what, value] in rows {
        let _ = writeln!(out, "{what:18} {value}");
    }
    out.push('\n');
    let mut before = None;
    for event in events {
        let after = before.map_or(String::new(), |b| since(event.at_ms.saturating_sub(b)));
        before = Some(event.at_ms);
        let _ = writeln!(out, "{}  {after:>9}  {:10} {}", clock(event.at_ms), event.kind, event.text);
    }
    Ok(out)
}

/// What the Pi found, in a word and in words.
fn on_the_disk(device: &Device) -> String {
    match (&device.found, &device.disk) {
        (Some(found), Some(disk)) => format!("{found}: {disk}"),
        (Some(found), None) => found.clone(),
        (None, _) => "-".into(),
    }
}

fn progress(device: &Device) -> String {
    match (device.done_bytes, device.total_bytes) {
        (0, 0) => "-".into(),
        (done, 0) => bytes(done),
        (done, total) => {
            let percent = u128::from(done.min(total)) * 100 / u128::from(total);
            format!("{} of {}, {percent} %", bytes(done), bytes(total))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_for_people() {
        let device = Device { done_bytes: 5, total_bytes: 10, ..Device::default() };
        assert_eq!(progress(&device), "5 B of 10 B, 50 %");
    }
}
