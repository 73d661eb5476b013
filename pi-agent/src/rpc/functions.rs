//! What the Pi can be asked.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use piman_core::rpc::{self, IDENTIFY, IDENTITY, LOG, REBOOT, REINSTALL, RUN, STATUS, Value};

use super::hook::{self, Keep};
use super::{Service, status};
use crate::rpc::value::{Answer, Data};

/// A call of the server, with its arguments as texts: no function here takes anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) opcode: i64,
    pub(super) args: Vec<String>,
    /// Arguments by name.
    pub(super) keywords: Vec<(String, String)>,
}

impl Call {
    pub(super) fn of(call: rpc::Call<'_>) -> Self {
        let text = |value: Value<'_>| value.str().map_or_else(|| value.to_string(), String::from);
        let keywords = call.keywords.pairs().map(|(name, value)| (text(name), text(value))).collect();
        Self { opcode: call.opcode, args: call.args.map(text).collect(), keywords }
    }

    /// Puts arguments by name to their places, for a function whose parameters are these.
    fn place(&self, parameters: &[&str]) -> Result<Self, String> {
        let mut placed = Self { opcode: self.opcode, args: self.args.clone(), keywords: Vec::new() };
        for (name, value) in &self.keywords {
            match parameters.iter().position(|p| p == name) {
                Some(at) if at == placed.args.len() => placed.args.push(value.clone()),
                Some(at) if at < placed.args.len() => {
                    return Err(format!("TypeError: the argument {name} is given twice"));
                }
                // No function here has two of them.
                _ => return Err(format!("TypeError: the function has no argument {name}")),
            }
        }
        match placed.args.get(parameters.len()) {
            Some(extra) => Err(format!("TypeError: the function does not take the argument {extra}")),
            None => Ok(placed),
        }
    }

    /// The first argument as a number of 1 to `most`; `default` if there is none.
    fn number(&self, default: u32, most: u32) -> Result<u32, String> {
        let Some(text) = self.args.first() else { return Ok(default) };
        let number = text.parse().ok().filter(|n| (1..=most).contains(n));
        number.ok_or_else(|| format!("ValueError: {text} is no number from 1 to {most}"))
    }
}

/// The most lines of a log, and its most bytes.
const LINES_MAX: u32 = 5000;
const LOG_MAX: usize = 256 << 10;
/// How long the answer of a reboot has to reach the server.
const GRACE: Duration = Duration::from_secs(1);

/// Runs one function to its end.
pub(super) fn run(service: &Service, call: &Call) -> Answer {
    let parameters: &[&str] = match u8::try_from(call.opcode) {
        Ok(LOG) => &["lines"],
        Ok(IDENTIFY) => &["seconds"],
        _ => &[],
    };
    // A hook has as many arguments as it likes, by place alone.
    let placed = match u8::try_from(call.opcode) {
        Ok(RUN) if call.keywords.is_empty() => call.clone(),
        Ok(RUN) => return Err("TypeError: a hook takes no arguments by name".into()),
        Ok(IDENTITY | STATUS | LOG | REBOOT | REINSTALL | IDENTIFY | rpc::ID) => call.place(parameters)?,
        _ => call.clone(),
    };
    let call = &placed;
    match u8::try_from(call.opcode) {
        Ok(IDENTITY) => Ok(identity(service)),
        Ok(STATUS) => Ok(status::now(&service.root)),
        Ok(LOG) => call.number(50, LINES_MAX).and_then(|lines| log_tail(&service.root, lines)),
        Ok(REBOOT | REINSTALL) => reboot(service),
        Ok(IDENTIFY) => {
            let seconds = call.number(10, 600)?;
            blink(&service.root.join("sys/class/leds"), Duration::from_secs(seconds.into()))
        }
        Ok(RUN) => hook::run(&service.hooks, &call.args),
        Ok(rpc::ID) => Ok(Data::Str(short_id(service))),
        _ => Err(format!("LookupError: no function is bound to opcode {}", call.opcode)),
    }
}

fn identity(service: &Service) -> Data {
    let identity = &service.identity;
    Data::Dict(vec![
        ("serial", identity.serial.as_deref().into()),
        ("mac", identity.mac.as_deref().into()),
        ("model", identity.model.as_deref().into()),
        ("agent", Some(env!("CARGO_PKG_VERSION")).into()),
    ])
}

/// Six characters, as old peers want them: the end of the serial number or of the hardware address.
fn short_id(service: &Service) -> String {
    let Some(name) = service.identity.serial.as_ref().or(service.identity.mac.as_ref()) else {
        return "000000".into();
    };
    let name: Vec<char> = name.chars().filter(char::is_ascii_alphanumeric).collect();
    let tail: String = name.iter().skip(name.len().saturating_sub(6)).collect();
    format!("{tail:0>6}")
}

/// The end of the journal, or of a log file where there is no journal.
fn log_tail(root: &Path, lines: u32) -> Answer {
    if root == Path::new("/") {
        let count = lines.to_string();
        let args = ["--no-pager", "-q", "-o", "short-iso", "-n", &count];
        match hook::execute(Path::new("journalctl"), &args, Keep::Last(LOG_MAX)) {
            Ok(ran) if ran.code == Some(0) => return Ok(Data::Str(tail(&ran.output, lines))),
            Err(e) if e.kind() == ErrorKind::TimedOut => {
                return Err(format!("TimeoutError: journalctl: {e}"));
            }
            _ => {}
        }
    }
    for name in ["var/log/syslog", "var/log/messages"] {
        if let Ok(bytes) = end_of(&root.join(name)) {
            return Ok(Data::Str(tail(&bytes, lines)));
        }
    }
    Err("FileNotFoundError: there is no journal, no /var/log/syslog and no /var/log/messages".into())
}

/// The last bytes of a file; logs can be large.
fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_MAX as u64)))?;
    let mut bytes = Vec::new();
    file.take(LOG_MAX as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn tail(bytes: &[u8], lines: u32) -> String {
    let bytes = bytes.get(bytes.len().saturating_sub(LOG_MAX)..).unwrap_or_default();
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines as usize)..).unwrap_or_default().join("\n")
}

/// Starts the Pi again, once the answer is on its way. What is installed then is the server's decision.
fn reboot(service: &Service) -> Answer {
    let program = service.reboot.clone();
    let start_again = move || {
        thread::sleep(GRACE);
        log::info!("the server starts this Pi again");
        match Command::new(&program).status() {
            Ok(status) if status.success() => {}
            Ok(status) => log::error!("{}: {status}", program.display()),
            Err(e) => log::error!("{}: {e}", program.display()),
        }
    };
    match thread::Builder::new().name("reboot".to_owned()).spawn(start_again) {
        Ok(_) => Ok(Data::Str("starting again".into())),
        Err(e) => Err(format!("OSError: the Pi does not start again: starting a thread: {e}")),
    }
}

/// Blinks the activity LED, and gives it back to what it showed before.
fn blink(leds: &Path, time: Duration) -> Answer {
    static BLINKING: Mutex<()> = Mutex::new(());
    // A second one would take what the first has set for what it showed before.
    let _blinking = match BLINKING.try_lock() {
        Ok(alone) => alone,
        Err(TryLockError::Poisoned(alone)) => alone.into_inner(),
        Err(TryLockError::WouldBlock) => return Err("RuntimeError: it blinks already".into()),
    };
    let names = ["ACT", "led0", "PWR", "led1"];
    let Some(led) = names.iter().map(|n| leds.join(n)).find(|p| p.join("brightness").exists()) else {
        return Err("FileNotFoundError: this machine has no activity LED".into());
    };
    let failed = |e: std::io::Error| format!("OSError: {}: {e}", led.display());
    let trigger = fs::read_to_string(led.join("trigger")).map_err(failed)?;
    let before =
        trigger.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("none", |(t, _)| t);
    fs::write(led.join("trigger"), "none").map_err(failed)?;
    let began = Instant::now();
    let mut lit = false;
    let mut blinking = Ok(());
    while began.elapsed() < time && blinking.is_ok() {
        lit = !lit;
        blinking = fs::write(led.join("brightness"), if lit { "1" } else { "0" });
        thread::sleep(Duration::from_millis(200));
    }
    fs::write(led.join("trigger"), before).map_err(failed)?;
    blinking.map_err(failed)?;
    Ok(Data::None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use std::path::PathBuf;

    fn service(root: &Path) -> Service {
        Service {
            host: String::new(),
            port: 0,
            password_file: None,
            protocol: None,
            hooks: root.join("hooks"),
            reboot: PathBuf::from("/bin/false"),
            root: root.to_owned(),
            identity: Identity { serial: Some("10000000abcdef01".into()), ..Identity::default() },
            messages: Vec::new(),
            on_message: None,
        }
    }

    fn call(opcode: u8, args: &[&str]) -> Call {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Call { opcode: opcode.into(), args, keywords: Vec::new() }
    }

    #[test]
    fn logs_are_cut_at_lines() {
        let root = tempfile::tempdir().unwrap();
        let service = service(root.path());
        assert!(run(&service, &call(LOG, &[])).unwrap_err().starts_with("FileNotFoundError"));
        fs::create_dir_all(root.path().join("var/log")).unwrap();
        let text: String = (0..100_000).map(|i| format!("line {i}\n")).collect();
        fs::write(root.path().join("var/log/syslog"), text).unwrap();
        let last = |lines: &str| run(&service, &call(LOG, &[lines])).unwrap();
        assert_eq!(last("2"), Data::Str("line 99998\nline 99999".into()));
        let mut named = call(LOG, &[]);
        named.keywords.push(("lines".into(), "2".into()));
        assert_eq!(run(&service, &named), Ok(Data::Str("line 99998\nline 99999".into())));
        named.args.push("2".into());
        assert!(run(&service, &named).unwrap_err().contains("the argument lines is given twice"));
        let mut unknown = call(LOG, &[]);
        unknown.keywords.push(("count".into(), "2".into()));
        assert!(run(&service, &unknown).unwrap_err().contains("has no argument count"));
        assert!(run(&service, &call(LOG, &["1", "2"])).unwrap_err().contains("does not take the argument 2"));
        for wrong in ["0", "5001", "-1", "x"] {
            assert!(run(&service, &call(LOG, &[wrong])).unwrap_err().starts_with("ValueError"));
        }
    }

    #[test]
    fn the_led_gets_its_trigger_back() {
        let root = tempfile::tempdir().unwrap();
        let service = service(root.path());
        assert!(run(&service, &call(IDENTIFY, &[])).unwrap_err().contains("no activity LED"));
        let led = root.path().join("sys/class/leds/ACT");
        fs::create_dir_all(&led).unwrap();
        fs::write(led.join("brightness"), "0").unwrap();
        fs::write(led.join("trigger"), "none [mmc0] timer").unwrap();
        assert_eq!(run(&service, &call(IDENTIFY, &["1"])), Ok(Data::None));
        assert_eq!(fs::read_to_string(led.join("trigger")).unwrap(), "mmc0");
        fs::write(led.join("trigger"), "none [mmc0] timer").unwrap();
        // Two at once: the second is told, and the first still gives back what was there.
        thread::scope(|scope| {
            let first = scope.spawn(|| run(&service, &call(IDENTIFY, &["1"])));
            let until = Instant::now() + Duration::from_secs(30);
            while fs::read_to_string(led.join("trigger")).unwrap() != "none" {
                assert!(Instant::now() < until && !first.is_finished());
                thread::yield_now();
            }
            assert!(run(&service, &call(IDENTIFY, &["1"])).unwrap_err().contains("blinks already"));
            assert_eq!(first.join().unwrap(), Ok(Data::None));
        });
        assert_eq!(fs::read_to_string(led.join("trigger")).unwrap(), "mmc0");
    }

    #[test]
    fn identity_and_unknown_functions() {
        let root = tempfile::tempdir().unwrap();
        let service = service(root.path());
        assert_eq!(run(&service, &call(rpc::ID, &[])), Ok(Data::Str("cdef01".into())));
        assert!(matches!(run(&service, &call(IDENTITY, &[])), Ok(Data::Dict(d)) if d.len() == 4));
        assert!(run(&service, &call(200, &[])).unwrap_err().contains("no function is bound"));
    }
}
