//! `piman call` and `piman status`: what the operator asks of running Pis, through the server.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use piman_core::talks::{FUNCTIONS, Function, REINSTALL, STATUS};
use serde_json::{Value as Json, json};

use super::client::connect_operator;
use super::data::Data;
use super::direct::{self, Direct};
use super::engine::Peer;
use super::fleet::{CALL, LIST, SOCKET};
use crate::orders::resolve;
use crate::state::{Device, Sqlite};
use crate::words::{columns, when};

/// How long the server itself may take.
const SERVER: Duration = Duration::from_secs(5);

/// A Pi that is connected, as the server lists it.
#[derive(Debug, Clone)]
struct Connected {
    key: String,
    info: Data,
}

/// What came of a call.
type Outcome = (Connected, Result<Data, String>);

/// What is to be called.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// A serial number or the beginning of one, a hardware address, an address, or `all`; a server by its name.
    pub device: String,
    /// The name of a function, or an opcode.
    pub function: String,
    /// Its arguments: JSON, or else texts.
    pub args: Vec<String>,
    /// How long each Pi may take.
    pub within: Duration,
    /// JSON in place of a table.
    pub json: bool,
}

/// Calls a function of one Pi or of all, at the same time. Returns what to print, and whether all went
/// well.
///
/// # Errors
/// If no server runs, or no such Pi or function is there.
pub fn call(state: &Path, wanted: &Wanted) -> anyhow::Result<(String, bool)> {
    called(wanted, |opcode, args| ask(state, &wanted.device, opcode, args, wanted.within))
}

/// Calls a function of a server, which [`Wanted::device`] names. As [`call`].
///
/// # Errors
/// If there is no connection or no login.
pub fn call_server(server: &Direct, wanted: &Wanted) -> anyhow::Result<(String, bool)> {
    called(wanted, |opcode, args| {
        let result = direct::ask(&wanted.device, server, opcode, args, wanted.within)?;
        Ok(vec![(Connected { key: wanted.device.clone(), info: Data::None }, result)])
    })
}

fn called(
    wanted: &Wanted,
    ask: impl FnOnce(u8, Vec<Data>) -> anyhow::Result<Vec<Outcome>>,
) -> anyhow::Result<(String, bool)> {
    let opcode = opcode(&wanted.function)?;
    let args: Vec<Data> = wanted.args.iter().map(|a| Data::typed(a)).collect();
    let outcomes = ask(opcode, args)?;
    let well = outcomes.iter().all(|(_, result)| result.is_ok());
    if wanted.json {
        let all: Vec<Json> = outcomes.iter().map(outcome_json).collect();
        return Ok((serde_json::to_string_pretty(&all)? + "\n", well));
    }
    let rows = outcomes.iter().map(|(device, result)| match result {
        Ok(value) => [device.key.clone(), "ok".into(), value.to_string().replace('\n', "\n  ")],
        Err(text) => [device.key.clone(), "failed".into(), text.clone()],
    });
    Ok((columns(["DEVICE", "", "RESULT"], rows), well))
}

/// How all Pis are that are connected. As [`call`].
///
/// # Errors
/// As [`call`].
pub fn status(state: &Path, within: Duration, json: bool) -> anyhow::Result<(String, bool)> {
    let outcomes = ask(state, "all", STATUS, Vec::new(), within)?;
    let well = outcomes.iter().all(|(_, result)| result.is_ok());
    if json {
        let all: Vec<Json> = outcomes.iter().map(outcome_json).collect();
        return Ok((serde_json::to_string_pretty(&all)? + "\n", well));
    }
    let rows = outcomes.iter().map(|(device, result)| {
        let text = |key: &str| device.info.find(key).and_then(Data::str).unwrap_or("-").to_owned();
        let since = device.info.find("since").and_then(Data::int).and_then(|ms| u64::try_from(ms).ok());
        let value = |key: &str, show: &dyn Fn(f64) -> String| match result {
            Ok(data) => data.find(key).and_then(Data::float).map_or_else(|| "-".into(), show),
            Err(_) => "-".into(),
        };
        let percent = |x: f64| format!("{x:.0} %");
        let image = result.as_ref().ok().and_then(|d| d.find("image")).and_then(Data::str);
        [
            device.key.clone(),
            text("address"),
            since.map_or_else(|| "-".into(), when),
            value("uptime", &|s| duration(s)),
            value("cpu", &percent),
            value("memory", &percent),
            value("disk", &percent),
            value("processes", &|n| format!("{n:.0}")),
            value("temperature", &|t| format!("{t:.1} °C")),
            image.and_then(|i| i.get(..12)).unwrap_or("-").to_owned(),
            result.as_ref().err().cloned().unwrap_or_default(),
        ]
    });
    let head = [
        "DEVICE",
        "ADDRESS",
        "CONNECTED",
        "UPTIME",
        "CPU",
        "MEMORY",
        "DISK",
        "PROCESSES",
        "TEMPERATURE",
        "IMAGE",
        "ERROR",
    ];
    Ok((columns(head, rows), well))
}

fn duration(seconds: f64) -> String {
    match seconds as u64 {
        s @ 0..100 => format!("{s} s"),
        s @ 100..6000 => format!("{} min", s / 60),
        s @ 6000..172_800 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

fn outcome_json((device, result): &Outcome) -> Json {
    match result {
        Ok(value) => json!({ "device": device.key, "result": value.to_json() }),
        Err(text) => json!({ "device": device.key, "error": text }),
    }
}

fn opcode(name: &str) -> anyhow::Result<u8> {
    if let Some(function) = Function::named(name) {
        return Ok(function.opcode);
    }
    name.parse().map_err(|_| {
        let names: Vec<&str> = FUNCTIONS.iter().map(|f| f.name).collect();
        anyhow!("there is no function `{name}`: there are {}, or an opcode from 0 to 255", names.join(", "))
    })
}

fn ask(
    state: &Path,
    device: &str,
    opcode: u8,
    args: Vec<Data>,
    within: Duration,
) -> anyhow::Result<Vec<Outcome>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    runtime.block_on(async {
        let socket = state.join(SOCKET);
        let server = connect_operator(&socket, SERVER).await.with_context(|| {
            format!(
                "no server answers at {}: start one with `piman serve --talks-port 25565`, and name its folder with --state",
                socket.display()
            )
        })?;
        let list = server.call(LIST, Vec::new(), SERVER).await.context("asking the server who is connected")?;
        let chosen = choose(device, connected(&list))?;
        if opcode == REINSTALL && !chosen.is_empty() {
            // The Pi only starts again; what it is told then is decided by the order.
            let keys: Vec<String> = chosen.iter().map(|c| c.key.clone()).collect();
            crate::orders::reinstall(&Sqlite::command(state)?, &keys, false)?;
        }
        let calls = chosen.into_iter().map(|device| {
            let (server, args) = (server.clone(), args.clone());
            tokio::spawn(async move {
                let result = one(&server, &device.key, opcode, args, within).await;
                (device, result)
            })
        });
        let calls: Vec<_> = calls.collect();
        let mut outcomes = Vec::new();
        for call in calls {
            outcomes.push(call.await.context("a call")?);
        }
        Ok(outcomes)
    })
}

async fn one(
    server: &Peer,
    key: &str,
    opcode: u8,
    args: Vec<Data>,
    within: Duration,
) -> Result<Data, String> {
    let within_ms = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
    let args = vec![key.into(), i64::from(opcode).into(), within_ms.into(), Data::Tuple(args)];
    // The server tells when the Pi is late; this is for a server that is.
    let result = server.call(CALL, args, within.saturating_add(SERVER)).await;
    result.map_err(|e| e.to_string().trim_start_matches("RuntimeError: ").to_owned())
}

fn connected(list: &Data) -> Vec<Connected> {
    let devices = list.members().unwrap_or_default().iter();
    let mut all: Vec<Connected> = devices
        .filter_map(|info| {
            Some(Connected { key: info.find("device")?.str()?.to_owned(), info: info.clone() })
        })
        .collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    all
}

fn choose(name: &str, all: Vec<Connected>) -> anyhow::Result<Vec<Connected>> {
    if name == "all" {
        return Ok(all);
    }
    let text = |c: &Connected, key: &str| c.info.find(key).and_then(Data::str).map(str::to_owned);
    let devices: Vec<Device> = all
        .iter()
        .map(|c| Device {
            serial: text(c, "serial"),
            mac: text(c, "mac"),
            address: text(c, "address").unwrap_or_default(),
            ..Device::default()
        })
        .collect();
    let meant = resolve(name, &devices)?.name;
    let is = |c: &Connected| {
        ["serial", "mac", "address"].iter().any(|key| text(c, key).as_deref() == Some(meant.as_str()))
    };
    let chosen: Vec<Connected> = all.into_iter().filter(is).collect();
    if chosen.is_empty() {
        bail!("{name} is not connected; `piman status` shows those that are");
    }
    Ok(chosen)
}
