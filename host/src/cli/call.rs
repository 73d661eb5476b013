//! `piman call` and `piman status`: what the operator asks of running Pis, through the server.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use piman_core::rpc::{FUNCTIONS, Function, REINSTALL, RUN, STATUS};
use serde_json::{Value as Json, json};

use crate::rpc::Data;
use crate::rpc::SOCKET;
use crate::rpc::connect_operator;
use crate::rpc::connected::{CALL, LIST};
use crate::rpc::{CallError, Peer};
use crate::rpc::{Direct, direct};
use crate::state::resolve::resolve;
use crate::state::{Device, Sqlite};
use crate::sys::clock::now_ms;
use crate::text::human::{self, columns, when};

/// How long the server itself may take.
const SERVER: Duration = Duration::from_secs(5);

/// A Pi that is connected, as the server lists it.
#[derive(Debug, Clone)]
struct Connected {
    key: String,
    /// Its connection, which stays the same when it says who it is meanwhile.
    connection: String,
    info: Data,
}

impl Connected {
    fn text(&self, key: &str) -> Option<&str> {
        self.info.find(key).and_then(Data::str)
    }
}

/// Why a call has no result.
#[derive(Debug, Clone)]
enum Failed {
    /// The function reported an error.
    Function(String),
    /// The Pi, or the server, did not answer as it should.
    Call(String),
}

impl Failed {
    fn text(&self) -> String {
        let (Self::Function(text) | Self::Call(text)) = self;
        // A peer's error is read on a terminal, too.
        Data::from(text.as_str()).to_string()
    }
}

/// What came of a call.
type Outcome = (Connected, Result<Data, Failed>);

/// What is said of an old peer instead of its status.
const NO_STATUS: &str = "an old peer, without a status function";

/// What is said of a peer without the protected login.
const UNPROTECTED: &str = "old login, not protected";

fn is_unprotected(device: &Connected) -> bool {
    device.info.find("protected") == Some(&Data::Bool(false))
}

/// What is to be called.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// A serial number or the beginning of one, a hardware address, an address, or `all`; a server by its name.
    pub device: String,
    /// The name of a function, or an opcode.
    pub function: String,
    /// Its arguments: JSON, or else texts; `name=value` gives one by name.
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
    called(wanted, |opcode, arguments| ask(state, &wanted.device, opcode, arguments, wanted.within))
}

/// Calls a function of a server, which [`Wanted::device`] names. As [`call`].
///
/// # Errors
/// If there is no connection or no login.
pub fn call_server(server: &Direct, wanted: &Wanted) -> anyhow::Result<(String, bool)> {
    called(wanted, |opcode, Arguments { by_place, by_name }| {
        let result = direct::ask(&wanted.device, server, opcode, by_place, by_name, wanted.within)?;
        let result = result.map_err(|e| match e {
            CallError::Function(text) => Failed::Function(text),
            other => Failed::Call(other.to_string()),
        });
        let server = Connected { key: wanted.device.clone(), connection: String::new(), info: Data::None };
        Ok(vec![(server, result)])
    })
}

fn called(
    wanted: &Wanted,
    ask: impl FnOnce(u8, Arguments) -> anyhow::Result<Vec<Outcome>>,
) -> anyhow::Result<(String, bool)> {
    let opcode = opcode(&wanted.function)?;
    // They would be sent to the Pi as texts, which nobody means.
    const OURS: [&str; 6] = ["--json", "--timeout", "--server", "--protocol", "--password-file", "--state"];
    let is_ours = |arg: &&String| OURS.iter().any(|o| arg.split('=').next() == Some(o));
    if let Some(arg) = wanted.args.iter().find(is_ours) {
        anyhow::bail!(
            "{arg} is an option of `piman call`: give it before the name of the Pi, or as an argument in JSON quotes, \
             '\"{arg}\"'"
        );
    }
    // By its name, and not by its opcode, which is any function to an old peer.
    let is_hook = Function::named(&wanted.function).is_some_and(|f| f.opcode == RUN);
    let arguments = if is_hook { Arguments::of_hook(&wanted.args) } else { Arguments::typed(&wanted.args)? };
    let outcomes = ask(opcode, arguments)?;
    let well = outcomes.iter().all(|(_, result)| result.is_ok());
    if wanted.json {
        let all: Vec<Json> = outcomes.iter().map(outcome_json).collect();
        return Ok((human::json(&all)?, well));
    }
    let rows = outcomes.iter().map(|(device, result)| match result {
        Ok(value) => [device.key.clone(), "ok".into(), value.to_string().replace('\n', "\n  ")],
        Err(e) => [device.key.clone(), "failed".into(), e.text().replace('\n', "\n  ")],
    });
    Ok((columns(["DEVICE", "", "RESULT"], rows), well))
}

/// How all Pis are that are connected. As [`call`].
///
/// # Errors
/// As [`call`].
pub fn status(state: &Path, within: Duration, json: bool) -> anyhow::Result<(String, bool)> {
    let outcomes = ask(state, "all", STATUS, Arguments::default(), within)?;
    // The old library has no status; that a peer is one of those is no failure.
    let old = |device: &Connected, result: &Result<Data, Failed>| {
        matches!(result, Err(Failed::Function(_))) && device.text("codec") == Some("pickle")
    };
    let well = outcomes.iter().all(|(device, result)| result.is_ok() || old(device, result));
    if json {
        let one = |outcome: &Outcome| match outcome {
            (device, result) if old(device, result) => {
                json!({ "device": device.key, "result": null, "note": format!("{NO_STATUS}; {UNPROTECTED}") })
            }
            outcome => outcome_json(outcome),
        };
        let all: Vec<Json> = outcomes.iter().map(one).collect();
        return Ok((human::json(&all)?, well));
    }
    let rows = outcomes.iter().map(|(device, result)| {
        let text = |key: &str| device.text(key).unwrap_or("-").to_owned();
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
            since.map_or_else(|| "-".into(), |at| when(at, now_ms())),
            value("uptime", &|s| duration(s)),
            value("cpu", &percent),
            value("memory", &percent),
            value("disk", &percent),
            value("processes", &|n| format!("{n:.0}")),
            value("temperature", &|t| format!("{t:.1} °C")),
            image.and_then(|i| i.get(..12)).unwrap_or("-").to_owned(),
            match result {
                Err(_) if old(device, result) => format!("{NO_STATUS}; {UNPROTECTED}"),
                Err(e) => e.text().replace('\n', "\n  "),
                Ok(_) if is_unprotected(device) => UNPROTECTED.into(),
                Ok(_) => String::new(),
            },
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
        "",
    ];
    Ok((columns(head, rows), well))
}

/// The arguments of a call.
#[derive(Debug, Clone, Default)]
struct Arguments {
    by_place: Vec<Data>,
    by_name: Vec<(Data, Data)>,
}

impl Arguments {
    /// What a hook gets is texts: `name=value`, `true` and numbers of any length arrive as they are.
    fn of_hook(texts: &[String]) -> Self {
        let by_place = texts.iter().map(|text| text.as_str().into()).collect();
        Self { by_place, by_name: Vec::new() }
    }

    /// As they are typed.
    fn typed(texts: &[String]) -> anyhow::Result<Self> {
        let mut arguments = Self::default();
        for text in texts {
            let named = text.split_once('=').filter(|(name, _)| is_name(name));
            let Some((name, value)) = named else {
                ensure!(
                    arguments.by_name.is_empty(),
                    "the argument `{text}` comes after one with a name: give those without a name first"
                );
                arguments.by_place.push(Data::typed(text)?);
                continue;
            };
            let key = Data::from(name);
            ensure!(
                arguments.by_name.iter().all(|(other, _)| *other != key),
                "the argument `{name}` is given twice"
            );
            arguments.by_name.push((key, Data::typed(value)?));
        }
        Ok(arguments)
    }
}

/// What Python takes for the name of a parameter.
fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && chars.all(|c| c.is_alphanumeric() || c == '_')
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
        Err(Failed::Function(text) | Failed::Call(text)) => json!({ "device": device.key, "error": text }),
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
    arguments: Arguments,
    within: Duration,
) -> anyhow::Result<Vec<Outcome>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    runtime.block_on(async {
        let socket = state.join(SOCKET);
        let server = connect_operator(&socket, SERVER).await.with_context(|| {
            format!(
                "no server answers at {}: start one with `piman serve --rpc-port 25565`, and name its folder with --state",
                socket.display()
            )
        })?;
        let list = server.call(LIST, Vec::new(), SERVER).await.context("asking the server who is connected")?;
        let chosen = choose(device, connected(&list))?;
        if opcode == REINSTALL && !chosen.is_empty() {
            // The Pi only starts again; what it is told then is decided by the order.
            let name = |c: &Connected| c.text("serial").or(c.text("address")).map(str::to_owned);
            // Several old peers at one address are one Pi to the installer.
            let keys: BTreeSet<String> = chosen.iter().filter_map(name).collect();
            let keys: Vec<String> = keys.into_iter().collect();
            crate::cli::reinstall::reinstall(&Sqlite::command(state)?, &keys, false)?;
        }
        let calls = chosen.into_iter().map(|device| {
            let (server, arguments) = (server.clone(), arguments.clone());
            tokio::spawn(async move {
                let result = one(&server, &device.connection, opcode, arguments, within).await;
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
    connection: &str,
    opcode: u8,
    arguments: Arguments,
    within: Duration,
) -> Result<Data, Failed> {
    let within_ms = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
    let Arguments { by_place, by_name } = arguments;
    let args = vec![connection.into(), i64::from(opcode).into(), within_ms.into(), Data::Tuple(by_place)];
    // The server tells when the Pi is late; this is for a server that is.
    let outcome = server.call_with(CALL, args, by_name, within.saturating_add(SERVER)).await;
    let outcome =
        outcome.map_err(|e| Failed::Call(e.to_string().trim_start_matches("RuntimeError: ").to_owned()))?;
    match outcome {
        Data::Tuple(mut parts) if parts.len() == 2 => match (parts.pop(), parts.pop()) {
            (Some(value), Some(Data::Bool(true))) => Ok(value),
            (Some(Data::Str(text)), _) => {
                Err(Failed::Function(text.trim_start_matches("RuntimeError: ").to_owned()))
            }
            _ => Err(Failed::Call("the server's answer makes no sense".into())),
        },
        _ => Err(Failed::Call("the server's answer makes no sense: is it of this version?".into())),
    }
}

fn connected(list: &Data) -> Vec<Connected> {
    let devices = list.members().unwrap_or_default().iter();
    let mut all: Vec<Connected> = devices
        .filter_map(|info| {
            Some(Connected {
                key: info.find("device")?.str()?.to_owned(),
                connection: info.find("connection")?.str()?.to_owned(),
                info: info.clone(),
            })
        })
        .collect();
    // Numbers by their value: #2 is before #10.
    let order = |c: &Connected| {
        let (name, number) = c.key.split_once('#').unwrap_or((&c.key, ""));
        (name.to_owned(), number.parse().unwrap_or(0_usize))
    };
    all.sort_by_cached_key(order);
    all
}

fn choose(name: &str, all: Vec<Connected>) -> anyhow::Result<Vec<Connected>> {
    if name == "all" {
        return Ok(all);
    }
    let unknown = || anyhow!("{name} is not connected; `piman status` shows those that are");
    // One of several at an address. The first of them has no number in its name, but may be called by it.
    if name.contains('#') {
        let is = |c: &Connected| c.connection == name || name.strip_suffix("#1") == Some(&c.connection);
        return Ok(vec![all.into_iter().find(is).ok_or_else(unknown)?]);
    }
    if let Ok(address) = name.trim().parse::<IpAddr>() {
        let address = address.to_canonical().to_string();
        let mut here: Vec<Connected> =
            all.into_iter().filter(|c| c.text("address") == Some(address.as_str())).collect();
        if here.len() > 1 {
            let names: Vec<&str> = here.iter().map(|c| c.key.as_str()).take(3).collect();
            let first =
                if names.contains(&name) { format!("; {name}#1 is the first") } else { String::new() };
            bail!(
                "{} peers are connected from {name}: name one of them ({}{}){first}, or call all",
                here.len(),
                names.join(", "),
                if here.len() > 3 { ", ..." } else { "" }
            );
        }
        return Ok(vec![here.pop().ok_or_else(unknown)?]);
    }
    let text = |c: &Connected, key: &str| c.text(key).map(str::to_owned);
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
        return Err(unknown());
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_by_place_and_by_name() {
        let owned = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<String>>();
        let typed = |texts: &[&str]| Arguments::typed(&owned(texts)).map(|a| (a.by_place, a.by_name));
        let pair = |name: &str, value: Data| (Data::from(name), value);
        assert_eq!(
            typed(&["1", "a b=c", "\"x=1\"", "=", "speed=2", "name=", "on=true", "text=a=b"]).unwrap(),
            (
                vec![1.into(), "a b=c".into(), "x=1".into(), "=".into()],
                vec![
                    pair("speed", 2.into()),
                    pair("name", "".into()),
                    pair("on", true.into()),
                    pair("text", "a=b".into())
                ]
            )
        );
        let hook = Arguments::of_hook(&owned(&["deploy", "A=1", "true"]));
        assert_eq!(hook.by_place, vec!["deploy".into(), "A=1".into(), "true".into()]);
        for wrong in [&["a=1", "2"][..], &["a=1", "a=2"], &["a=9223372036854775808"]] {
            assert!(typed(wrong).is_err(), "{wrong:?}");
        }
    }
}
