//! A state that fails at each of the calls that a decision makes, and an order that is cancelled before each of them:
//! the real decision, over real sockets, on the real database.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use piman::config::live::Live;
use piman::config::{OldPis, Options, Settings};
use piman::images::personalise::profile::{Profile, Secret};
use piman::images::source::Source;
use piman::net::drain::Drain;
use piman::provision::{Bound, Running, Shared};
use piman::state::archive_facts::{Content, Stamp};
use piman::state::decision::{Ask, Cancelled, Claimed, Policy, Rule, Scope};
use piman::state::keys::{Keys, PendingKey, PinnedKey};
use piman::state::{
    About, Batch, Catalogue, Device, DeviceEvent, Edit, Identity, Listed, ListedPi, OpenOrder, Order,
    Ordered, PersonalFacts, PersonalOrder, Recorder, Sqlite, State, StateError, StoredProfile, Written,
};
use piman::sys::clock::now_ms;
use piman_core::hash::Hash;
use piman_core::install::trust::PublicKey;
use piman_core::install::{Can, Fingerprint, Found, Hello, Installation, Notice, Paths};
use piman_tests::server::{connect_from, wait_until};
use piman_tests::tar;
use tokio::runtime::{Builder, Runtime};

/// What happens at one of the calls that a decision makes, which are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// It fails, and nothing is done.
    Fail(usize),
    /// It is done, and fails then: the disk is lost in the middle of it, say.
    FailAfter(usize),
    /// Somebody cancels just before it.
    Cancel(usize),
}

#[derive(Debug)]
struct Calls {
    fault: Fault,
    /// Their names.
    made: Vec<&'static str>,
    /// What is cancelled, and what that led to.
    name: String,
    cancelled: Option<Cancelled>,
}

/// The real state, with faults.
struct Faulty {
    real: Sqlite,
    calls: Mutex<Calls>,
}

impl Faulty {
    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap()
    }

    fn call<T>(
        &self,
        name: &'static str,
        real: impl FnOnce(&Sqlite) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut calls = self.calls();
        let at = calls.made.len();
        calls.made.push(name);
        let failed =
            || Err(StateError::Busy { path: "piman.db".into(), reason: format!("{name} fails, call {at}") });
        match calls.fault {
            Fault::Fail(n) if n == at => return failed(),
            Fault::Cancel(n) if n == at => calls.cancelled = Some(self.real.cancel(&calls.name)?),
            _ => {}
        }
        let fails_after = calls.fault == Fault::FailAfter(at);
        drop(calls);
        let done = real(&self.real)?;
        if fails_after { failed() } else { Ok(done) }
    }
}

/// What decisions call is counted. The rest is called by other threads, whenever it suits them.
impl State for Faulty {
    fn open_orders(&self, pi: &Identity) -> Result<Vec<OpenOrder>, StateError> {
        self.call("open_orders", |real| real.open_orders(pi))
    }
    fn personal_of(&self, pi: &Identity) -> Result<PersonalFacts, StateError> {
        self.call("personal_of", |real| real.personal_of(pi))
    }
    fn give_host_name(&self, pi: &Identity, name: &str) -> Result<Option<String>, StateError> {
        self.call("give_host_name", |real| real.give_host_name(pi, name))
    }
    fn is_personal_ordered(&self, pi: &Identity) -> Result<bool, StateError> {
        self.call("is_personal_ordered", |real| real.is_personal_ordered(pi))
    }
    fn begin_personal(
        &self,
        pi: &Identity,
        number: Installation,
    ) -> Result<Option<Installation>, StateError> {
        self.call("begin_personal", |real| real.begin_personal(pi, number))
    }
    fn about(&self, path: &Path) -> Result<About, StateError> {
        self.call("about", |real| real.about(path))
    }
    fn keys_of(&self, pi: &Identity) -> Result<Keys, StateError> {
        self.call("keys_of", |real| real.keys_of(pi))
    }
    fn is_given(&self, pi: &Identity, image: Hash, number: Option<Installation>) -> Result<bool, StateError> {
        self.call("is_given", |real| real.is_given(pi, image, number))
    }
    fn pin(&self, device: &str, key: PublicKey, source: &str, replaces: bool) -> Result<bool, StateError> {
        self.call("pin", |real| real.pin(device, key, source, replaces))
    }
    fn pinned_keys(&self) -> Result<Vec<PinnedKey>, StateError> {
        self.real.pinned_keys()
    }
    fn forget_key(&self, device: &str) -> Result<bool, StateError> {
        self.real.forget_key(device)
    }
    fn pending_keys(&self) -> Result<Vec<PendingKey>, StateError> {
        self.real.pending_keys()
    }
    fn profiles(&self) -> Result<Vec<StoredProfile>, StateError> {
        self.real.profiles()
    }
    fn set_profile(
        &self,
        scope: &Scope,
        written: &Written,
        source: &str,
    ) -> Result<Option<String>, StateError> {
        self.real.set_profile(scope, written, source)
    }
    fn remove_profile(&self, scope: &Scope) -> Result<bool, StateError> {
        self.real.remove_profile(scope)
    }
    fn order_personal(&self, name: &str, source: &str) -> Result<Ordered, StateError> {
        self.real.order_personal(name, source)
    }
    fn cancel_personal(&self, name: &str) -> Result<bool, StateError> {
        self.real.cancel_personal(name)
    }
    fn personal_orders(&self) -> Result<Vec<PersonalOrder>, StateError> {
        self.real.personal_orders()
    }
    fn policy_of(&self, pi: &Identity, base: Policy) -> Result<Policy, StateError> {
        self.call("policy_of", |real| real.policy_of(pi, base))
    }
    fn image_of(&self, pi: &Identity) -> Result<Option<PathBuf>, StateError> {
        self.call("image_of", |real| real.image_of(pi))
    }
    fn claim(&self, ask: &Ask<'_>) -> Result<Option<Claimed>, StateError> {
        self.call("claim", |real| real.claim(ask))
    }
    fn save(&self, batch: &Batch) -> Result<(), StateError> {
        self.real.save(batch)
    }
    fn order(&self, name: &str, source: &str, print: Option<Fingerprint>) -> Result<Ordered, StateError> {
        self.real.order(name, source, print)
    }
    fn cancel(&self, name: &str) -> Result<Cancelled, StateError> {
        self.real.cancel(name)
    }
    fn rules(&self) -> Result<Vec<(Scope, Rule)>, StateError> {
        self.real.rules()
    }
    fn set_rules(&self, scope: &Scope, rules: &[Rule]) -> Result<(), StateError> {
        self.real.set_rules(scope, rules)
    }
    fn is_listed(&self, pi: &Identity) -> Result<Listed, StateError> {
        self.call("is_listed", |real| real.is_listed(pi))
    }
    fn listed(&self) -> Result<Vec<ListedPi>, StateError> {
        self.real.listed()
    }
    fn add_listed(&self, pis: &[(String, Option<String>)], source: &str) -> Result<usize, StateError> {
        self.real.add_listed(pis, source)
    }
    fn remove_listed(&self, names: &[String]) -> Result<Vec<String>, StateError> {
        self.real.remove_listed(names)
    }
    fn orders(&self) -> Result<Vec<Order>, StateError> {
        self.real.orders()
    }
    fn devices(&self) -> Result<Vec<Device>, StateError> {
        self.real.devices()
    }
    fn events(&self, key: &str) -> Result<Vec<DeviceEvent>, StateError> {
        self.real.events(key)
    }
    fn alerts(&self) -> Result<Vec<DeviceEvent>, StateError> {
        self.real.alerts()
    }
    fn catalogue(&self) -> Result<Catalogue, StateError> {
        self.real.catalogue()
    }
    fn edit(&self, edit: &Edit) -> Result<bool, StateError> {
        self.real.edit(edit)
    }
    fn known(&self, path: &Path) -> Result<Option<(Stamp, Content)>, StateError> {
        self.real.known(path)
    }
    fn keep(&self, path: &Path, stamp: &Stamp, facts: &Content) -> Result<(), StateError> {
        self.real.keep(path, stamp, facts)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Boot,
    Format,
    /// To wait, or nothing at all, which is how an old Pi waits.
    Wait,
}

/// The install service of a server, in this process.
struct Lab {
    state: Arc<Faulty>,
    recorder: Arc<Recorder>,
    running: Running,
    control_port: u16,
    _runtimes: [Runtime; 2],
    _folder: tempfile::TempDir,
    _archive: tempfile::NamedTempFile,
}

const SERIAL: &str = "10000000cafe0a01";
const OLD: [u8; 4] = [127, 0, 0, 1];
/// Of the Pi with that serial number: what is known of an address becomes that of the Pi that says its name there.
const PI: [u8; 4] = [127, 0, 0, 2];
const PRINT: Option<Fingerprint> = Fingerprint::new(0xabcd);

impl Lab {
    fn new(old_pis: OldPis, only_known: bool) -> Self {
        let (archive, folder) = (tar::of_bytes(3000), tempfile::tempdir().unwrap());
        let any = Some(0);
        let options = Options {
            rootfs: Some(archive.path().to_owned()),
            listen: Some(Ipv4Addr::LOCALHOST.into()),
            control_port: any,
            rootfs_port: any,
            fetch_port: any,
            state: Some(folder.path().to_owned()),
            no_date: Some(true),
            no_images: Some(true),
            allow_unfit: Some(true),
            old_pis: Some(old_pis),
            only_known: Some(only_known),
            ..Options::default()
        };
        let settings = Settings::try_from(options).unwrap();
        let calls = Calls { fault: Fault::None, made: Vec::new(), name: String::new(), cancelled: None };
        let real = Sqlite::serve(folder.path()).unwrap();
        let text = "hostname = 'lab-{ordinal}'";
        let written = Written { text: Secret::new(text), profile: Profile::parse(text).unwrap() };
        real.set_profile(&Scope::Device(SERIAL.into()), &written, "test").unwrap();
        let state = Arc::new(Faulty { real, calls: Mutex::new(calls) });
        let shared: Arc<dyn State> = Arc::clone(&state) as _;
        let (recorder, _) = Recorder::start(Arc::clone(&shared)).unwrap();
        let runtimes =
            [(); 2].map(|()| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
        let source = Source::open(archive.path()).unwrap();
        let bound = Bound::open(&settings, Some(source)).unwrap();
        let control_port = bound.addresses.control.port();
        let shared = Shared { state: shared, recorder: Arc::clone(&recorder), drain: Drain::default() };
        let running = bound.start(&Live::new(settings), shared, &runtimes[0], &runtimes[1]).unwrap();
        wait_until("the archive is good", || running.service.catalog.good().len() == 1);
        Self {
            state,
            recorder,
            running,
            control_port,
            _runtimes: runtimes,
            _folder: folder,
            _archive: archive,
        }
    }

    /// What a Pi is told that says this and then nothing more, and the calls that this took.
    fn told(&self, says: &str, name: &str, fault: Fault) -> (Told, Vec<&'static str>, Option<Cancelled>) {
        *self.state.calls() = Calls { fault, made: Vec::new(), name: name.into(), cancelled: None };
        let from = if says.contains(SERIAL) { PI } else { OLD };
        let mut stream = connect_from(from, self.control_port);
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(says.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let is = |word: &str| text.lines().any(|line| line == word);
        let told = match (is("format"), is("boot")) {
            (true, false) => Told::Format,
            (false, true) => Told::Boot,
            (false, false) => Told::Wait,
            (true, true) => panic!("{text}"),
        };
        let mut calls = self.state.calls();
        (told, std::mem::take(&mut calls.made), calls.cancelled.take())
    }

    /// When the last reason for formatting was recorded, in milliseconds since 1970.
    fn last_reason(&self, key: &str) -> u64 {
        let events = self.state.real.events(key).unwrap();
        events.iter().filter(|e| e.kind == "reason").map(|e| e.at_ms).max().unwrap_or(0)
    }

    /// The order of this name that is open.
    fn open(&self, name: &str) -> Option<Order> {
        let orders = self.state.real.orders().unwrap().into_iter();
        orders.filter(|o| o.name == name).find(|o| o.completed_ms.is_none() && o.cancelled_ms.is_none())
    }

    fn end(self) {
        let threads = self.running.stop();
        self.recorder.close();
        for thread in threads {
            thread.thread().unpark();
            thread.join().unwrap();
        }
    }
}

/// A Pi and what is ordered for it.
struct Case {
    what: &'static str,
    says: String,
    installed: bool,
    /// Whether it is formatted without an order, too.
    by_policy: bool,
    /// The name of the order, and the content that it is for.
    order: Option<(&'static str, Option<Fingerprint>)>,
}

fn cases() -> Vec<Case> {
    let ours = |hello: Hello<'_>, report: &str| {
        let paths = Paths { stream: true, image: false };
        let can = Can { personal: true, ..Can::default() };
        let hello = Hello { serial: Some(SERIAL), paths, can, ..hello };
        format!("{}\n{report}\n", Notice::Hello(hello))
    };
    let found = |found, report| {
        ours(Hello { revision: 2, found: Some(found), print: PRINT, ..Hello::default() }, report)
    };
    let (no, yes) = ("IS_UNINSTALLED", "IS_INSTALLED");
    let case = |what, says, installed, by_policy, order| Case { what, says, installed, by_policy, order };
    let plain = Some((SERIAL, None));
    vec![
        case("an old Pi with a system", format!("{yes}\n"), true, false, Some(("127.0.0.1", None))),
        case("an old Pi without one", format!("{no}\n"), false, true, None),
        case("an old Pi without one, ordered", format!("{no}\n"), false, true, Some(("127.0.0.1", None))),
        case("ours of revision 1", ours(Hello { revision: 1, ..Hello::default() }, yes), true, false, plain),
        case("whole", found(Found::Ours, yes), true, false, plain),
        case("damaged", found(Found::Damaged, yes), true, false, plain),
        case("blank", found(Found::Blank, no), false, true, None),
        case("blank, ordered", found(Found::Blank, no), false, true, plain),
        case("incomplete", found(Found::Incomplete, no), false, true, plain),
        case("foreign", found(Found::Foreign, no), false, false, Some((SERIAL, PRINT))),
        case("unreadable", found(Found::Unreadable, no), false, false, Some((SERIAL, PRINT))),
    ]
}

/// Orders anew; what was begun before is over.
fn order(lab: &Lab, case: &Case) {
    for name in [SERIAL, "127.0.0.1"] {
        lab.state.real.cancel(name).unwrap();
    }
    if let Some((name, print)) = case.order {
        assert_eq!(lab.state.real.order(name, "test", print).unwrap(), Ordered::New);
    }
}

#[test]
fn a_state_that_fails_at_the_nth_call_never_formats() {
    // With the device list there is one call more.
    let lab = Lab::new(OldPis::Install, true);
    let everybody = [SERIAL, "127.0.0.1"].map(|name| (name.to_owned(), None));
    lab.state.real.add_listed(&everybody, "test").unwrap();
    let mut failures = 0;
    for case in cases() {
        let key = if case.says.contains(SERIAL) { SERIAL } else { "127.0.0.1" };
        let name = case.order.map_or(key, |(name, _)| name);
        order(&lab, &case);
        let before = now_ms();
        let (told, calls, _) = lab.told(&case.says, name, Fault::None);
        assert_eq!(told, Told::Format, "{}: {calls:?}", case.what);
        assert_eq!(calls.last(), Some(&"claim"), "{}: what formats is on record last", case.what);
        assert!(lab.last_reason(key) >= before, "{}", case.what);
        let instead = if case.installed { Told::Boot } else { Told::Wait };
        for at in 0..calls.len() {
            for fault in [Fault::Fail(at), Fault::FailAfter(at)] {
                order(&lab, &case);
                let (told, made, _) = lab.told(&case.says, name, fault);
                assert_eq!(told, instead, "{}: {fault:?} of {made:?}", case.what);
                // The order is not lost: it is carried out when the state is well again.
                assert_eq!(lab.open(name).is_some(), case.order.is_some(), "{}: {fault:?}", case.what);
                assert_eq!(lab.told(&case.says, name, Fault::None).0, Told::Format, "{}", case.what);
                failures += 1;
            }
        }
    }
    assert!(failures >= 11 * 5 * 2, "{failures} failures were tried");
    lab.end();
}

#[test]
fn an_order_cancelled_before_any_call_is_withdrawn_or_has_begun() {
    for old_pis in [OldPis::Install, OldPis::Ask] {
        let lab = Lab::new(old_pis, false);
        for case in cases() {
            let Some((name, _)) = case.order else { continue };
            let by_policy = case.by_policy && (case.says.contains(SERIAL) || old_pis == OldPis::Install);
            order(&lab, &case);
            let calls = lab.told(&case.says, name, Fault::None).1;
            for at in 0..=calls.len() {
                order(&lab, &case);
                let (told, made, cancelled) = lab.told(&case.says, name, Fault::Cancel(at));
                // Behind the last call: after the Pi was told.
                let cancelled = cancelled.unwrap_or_else(|| lab.state.real.cancel(name).unwrap());
                let what = format!("{}, cancelled before {at} of {made:?}: {cancelled:?}", case.what);
                match cancelled {
                    Cancelled::Begun { .. } => assert_eq!(told, Told::Format, "{what}"),
                    Cancelled::Yes if by_policy => assert_eq!(told, Told::Format, "{what}"),
                    Cancelled::Yes if case.installed => assert_eq!(told, Told::Boot, "{what}"),
                    Cancelled::Yes => assert_eq!(told, Told::Wait, "{what}"),
                    Cancelled::NoOrder => panic!("{what}"),
                }
                assert_eq!(matches!(cancelled, Cancelled::Yes), at < calls.len(), "{what}");
                assert_eq!(lab.open(name), None, "{what}");
                // What was cancelled is never carried out, however often the Pi asks.
                let again = lab.told(&case.says, name, Fault::None).0;
                assert_eq!(again == Told::Format, by_policy, "{what}");
            }
        }
        lab.end();
    }
}

#[test]
fn what_the_card_shows_to_be_done_is_not_done_again() {
    let lab = Lab::new(OldPis::Install, false);
    let say = |installation| {
        let (card, paths) = (Some(Hash([3; 32])), Paths { stream: true, image: false });
        let (revision, found) = (2, Some(Found::Ours));
        let can = Can { personal: true, ..Can::default() };
        let serial = Some(SERIAL);
        let hello = Hello { serial, revision, found, card, installation, paths, can, ..Hello::default() };
        format!("{}\nIS_INSTALLED\n", Notice::Hello(hello))
    };
    lab.state.real.order(SERIAL, "test", None).unwrap();
    assert_eq!(lab.told(&say(None), SERIAL, Fault::None).0, Told::Format);
    let number = lab.open(SERIAL).and_then(|o| Installation::parse(&o.installation?));
    assert!(number.is_some());
    // It has done so, and the server has not heard it. No error makes it begin again.
    for at in 0..3 {
        assert_eq!(lab.told(&say(number), SERIAL, Fault::Fail(at)).0, Told::Boot, "call {at}");
        // The first call fails before the card is compared with the order.
        let is_open = lab.open(SERIAL).is_some();
        if at == 0 {
            assert!(is_open);
        }
    }
    wait_until("the order is completed", || lab.open(SERIAL).is_none());
    assert_eq!(lab.told(&say(number), SERIAL, Fault::None).0, Told::Boot);

    // A Pi that reports the end while orders cannot be read: they are completed when they can.
    lab.state.real.order(SERIAL, "test", None).unwrap();
    assert_eq!(lab.told(&say(None), SERIAL, Fault::None).0, Told::Format);
    let number = lab.open(SERIAL).and_then(|o| Installation::parse(&o.installation?));
    let pi = Identity { serial: Some(SERIAL.into()), ..Identity::of(PI.into()) };
    *lab.state.calls() =
        Calls { fault: Fault::Fail(0), made: Vec::new(), name: String::new(), cancelled: None };
    assert_eq!(lab.recorder.complete(&pi, number), 0);
    assert!(lab.open(SERIAL).is_some());
    assert_eq!(lab.told(&say(None), SERIAL, Fault::None).0, Told::Boot, "it is done");
    wait_until("the order is completed", || lab.open(SERIAL).is_none());
    lab.end();
}
