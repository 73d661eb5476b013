use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::state::{Batch, Change, Edit, FILE, Sqlite, State};

fn pi(serial: &str, host: u8) -> Identity {
    Identity { serial: Some(serial.into()), ..Identity::of([10, 0, 0, host].into()) }
}

fn written(text: &str) -> Written {
    Written { text: Secret::new(text), profile: Profile::parse(text).unwrap() }
}

fn seen(state: &Sqlite, pi: &Identity, at: u64) {
    let change = Change { seen_ms: at, ..Change::of(pi.clone()) };
    state.save(&Batch { changes: vec![change], ..Batch::default() }).unwrap();
}

#[test]
fn profiles_are_merged_for_a_pi() {
    let folder = tempfile::tempdir().unwrap();
    let state = Sqlite::serve(folder.path()).unwrap();
    let (one, two) = (pi("10000001", 1), pi("10000002", 2));
    assert_eq!(state.personal_of(&one).unwrap().profile, None);
    let set = |scope: &Scope, text: &str| state.set_profile(scope, &written(text), "test").unwrap();
    set(&Scope::Server, "hostname = 'a'\nlocale = 'C'");
    set(&Scope::Group("lab".into()), "hostname = 'b'\n[wifi]\nssid = 'x'\npsk = 'hunter22'");
    set(&Scope::Device("10000001".into()), "hostname = 'c'");
    state.edit(&Edit::Join { device: "10000001".into(), group: Some("lab".into()) }).unwrap();
    let facts = state.personal_of(&one).unwrap();
    let profile = facts.profile.unwrap();
    assert_eq!((profile.hostname.as_deref(), profile.locale.as_deref()), (Some("c"), Some("C")));
    assert!(profile.wifi.is_some() && facts.group.as_deref() == Some("lab"));
    assert_eq!(state.personal_of(&two).unwrap().profile.unwrap().hostname.as_deref(), Some("a"));
    let all = state.profiles().unwrap();
    assert_eq!(
        all.iter().map(|p| p.scope.to_string()).collect::<Vec<_>>(),
        ["every Pi", "10000001", "group lab"]
    );
    assert!(!format!("{all:?}").contains("hunter22"));
    assert!(state.remove_profile(&Scope::Server).unwrap());
    assert!(!state.remove_profile(&Scope::Server).unwrap());
    assert_eq!(state.personal_of(&two).unwrap().profile, None);
}

/// Whatever the order of the rows, the same name decides, and so in everything that groups have.
#[test]
fn of_several_names_of_a_pi_the_best_one_decides() {
    use crate::state::decision::{Action, Policy, Rule};
    use piman_core::install::Found;
    for turn in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let state = Sqlite::serve(folder.path()).unwrap();
        let pi = Identity { mac: Some("aa:01".into()), ..pi("10000001", 1) };
        let mut names = [("10000001", "serial"), ("10.0.0.1", "address"), ("aa:01", "mac")];
        if turn {
            names.reverse();
        }
        for (device, name) in names {
            let group = Some(name.to_owned());
            state.edit(&Edit::Join { device: device.into(), group }).unwrap();
            let group = Scope::Group(name.into());
            let (path, about) = (format!("/{name}").into(), crate::state::About::default());
            let image = name.to_owned();
            state.edit(&Edit::Add { name: image.clone(), path, takes_unfit: false, about }).unwrap();
            state.edit(&Edit::Choose { who: image.clone(), is_group: true, image: Some(image) }).unwrap();
            let action = if name == "serial" { Action::Install } else { Action::Boot };
            state.set_rules(&group, &[Rule { found: Found::Foreign, action }]).unwrap();
            state.set_profile(&group, &written(&format!("hostname = 'of-{name}'")), "test").unwrap();
        }
        let facts = state.personal_of(&pi).unwrap();
        assert_eq!(facts.group.as_deref(), Some("serial"), "{turn}");
        assert_eq!(facts.profile.unwrap().hostname.as_deref(), Some("of-serial"), "{turn}");
        assert_eq!(state.image_of(&pi).unwrap().unwrap(), std::path::Path::new("/serial"), "{turn}");
        let policy = state.policy_of(&pi, Policy::default()).unwrap();
        assert_eq!(policy.of(Found::Foreign), Action::Install, "{turn}");
        // And what is set for the Pi itself, by several of its names.
        for (device, name) in names {
            let device = Scope::Device(device.into());
            state.set_profile(&device, &written(&format!("hostname = 'own-{name}'")), "test").unwrap();
        }
        let own = state.personal_of(&pi).unwrap().profile.unwrap();
        assert_eq!(own.hostname.as_deref(), Some("own-serial"), "{turn}");
    }
}

#[test]
fn numbers_are_given_in_the_order_of_first_contact_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let state = Sqlite::serve(folder.path()).unwrap();
    let pis = [pi("10000001", 1), pi("10000002", 2), pi("10000003", 3)];
    seen(&state, &pis[1], 10);
    seen(&state, &pis[0], 20);
    let ordinal = |pi: &Identity| state.personal_of(pi).unwrap().ordinal;
    assert_eq!([ordinal(&pis[2]), ordinal(&pis[0]), ordinal(&pis[1])], [3, 2, 1]);
    let set = |name: &str, text: &str| {
        state.set_profile(&Scope::Device(name.into()), &written(text), "test").unwrap()
    };
    // One that has no host name by its number gives it up.
    assert_eq!(set("10000003", "[device]\nordinal = 1"), None);
    assert_eq!((ordinal(&pis[2]), ordinal(&pis[1])), (1, 3));
    assert_eq!(state.give_host_name(&pis[0], "lab-2").unwrap(), None);
    assert_eq!(state.give_host_name(&pis[0], "lab-2").unwrap(), None);
    assert_eq!(state.give_host_name(&pis[1], "LAB-2").unwrap().as_deref(), Some("10000001"));
    assert_eq!(set("10000002", "[device]\nordinal = 2").as_deref(), Some("10000001"));
    assert!(state.profiles().unwrap().iter().all(|p| p.scope != Scope::Device("10000002".into())));
    // The one that is gone for good makes room.
    assert!(state.remove_profile(&Scope::Device("10000001".into())).unwrap());
    assert_eq!(set("10000002", "[device]\nordinal = 2"), None);
    assert_eq!(ordinal(&pis[1]), 2);
    // A number that was set by a name under which it is not kept.
    let by_mac = Identity { mac: Some("b8:27:eb:00:00:09".into()), ..pi("10000009", 9) };
    assert_eq!(set("b8:27:eb:00:00:09", "[device]\nordinal = 99"), None);
    assert_eq!(ordinal(&by_mac), 99);
    // A Pi that was known by its address only says who it is.
    let address = Identity::of([10, 0, 0, 7].into());
    seen(&state, &address, 30);
    let before = ordinal(&address);
    seen(&state, &pi("10000007", 7), 40);
    assert_eq!(ordinal(&pi("10000007", 7)), before);
    let devices = state.devices().unwrap();
    assert!(devices.iter().all(|d| d.ordinal.is_some()));
}

#[test]
fn orders_to_apply_a_profile() {
    let folder = tempfile::tempdir().unwrap();
    let state = Sqlite::serve(folder.path()).unwrap();
    let one = pi("10000001", 1);
    seen(&state, &one, 1);
    let number = Installation;
    assert_eq!(state.begin_personal(&one, number(1)).unwrap(), None);
    assert_eq!(state.order_personal("10000001", "test").unwrap(), Ordered::New);
    assert!(matches!(
        state.order_personal("10000001", "test").unwrap(),
        Ordered::Already { claimed: false, .. }
    ));
    assert_eq!(state.order_personal("10.0.0.1", "test").unwrap(), Ordered::New);
    assert!(state.devices().unwrap()[0].personalise_ordered && state.is_personal_ordered(&one).unwrap());
    // However often it is tried, it is the same.
    assert_eq!(state.begin_personal(&one, number(1)).unwrap(), Some(number(1)));
    assert_eq!(state.begin_personal(&one, number(2)).unwrap(), Some(number(1)));
    let done = |until| Batch { personalised: vec![(one.clone(), until)], ..Batch::default() };
    // What was ordered since it was rendered is still to be done.
    state.save(&done(1)).unwrap();
    assert!(state.is_personal_ordered(&one).unwrap());
    state.save(&done(now_ms())).unwrap();
    assert!(!state.is_personal_ordered(&one).unwrap());
    assert_eq!(state.personal_orders().unwrap().iter().filter(|o| o.completed_ms.is_some()).count(), 2);
    state.order_personal("10000001", "test").unwrap();
    assert!(state.cancel_personal("10000001").unwrap() && !state.cancel_personal("10000001").unwrap());
    assert!(!state.is_personal_ordered(&one).unwrap());
}

#[test]
fn nobody_else_may_read_it_and_what_is_removed_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(FILE);
    fs::write(&file, b"").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o664)).unwrap();
    let state = Sqlite::serve(folder.path()).unwrap();
    let text = "[wifi]\nssid = 'x'\npsk = 'hunter22'";
    state.set_profile(&Scope::Server, &written(text), "test").unwrap();
    for name in ["piman.db", "piman.db-wal", "piman.db-shm"] {
        let mode = fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o007, 0, "{name} has {mode:o}");
    }
    state.remove_profile(&Scope::Server).unwrap();
    drop(state);
    let bytes = fs::read(&file).unwrap();
    assert!(!bytes.windows(8).any(|w| w == b"hunter22"));
    let fresh = tempfile::tempdir().unwrap();
    drop(Sqlite::serve(fresh.path()).unwrap());
    assert_eq!(fs::metadata(fresh.path().join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_profile_of_a_newer_version_is_an_error_and_no_other_profile() {
    let folder = tempfile::tempdir().unwrap();
    let state = Sqlite::serve(folder.path()).unwrap();
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    let row = "INSERT INTO profiles VALUES ('*', 0, '', '{\"psk\": \"hunter22\"}', 1, '')";
    db.execute(row, []).unwrap();
    let error = state.personal_of(&pi("10000001", 1)).unwrap_err().to_string();
    assert!(error.contains("set it again") && !error.contains("hunter22"), "{error}");
}
