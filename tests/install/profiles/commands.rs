//! `piman profile` beside a server.

use super::*;

const PROFILE: &str = "# hunter2 in a remark
hostname = 'lab-{ordinal:02}'
[wifi]
ssid = 'x'
psk = 'hunter2-hunter2'
[[users]]
name = 'op'
password-file = 'password'
[[files]]
path = '/etc/token'
content = 'hunter2'
secret = true
";

#[test]
fn secrets_are_shown_to_whoever_asks_for_them_and_to_nobody_else() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new(&[]);
    lab.write("password", "hunter2\n");
    let pi = lab.pi(2, ABLE);
    // Without a network that the image could have.
    let set = lab.set(&["--group", "lab"], PROFILE);
    assert!(
        set.contains("the profile of group lab: host name lab-{ordinal:02}, Wi-Fi x, 1 account, 1 file"),
        "{set}"
    );
    let set = lab
        .set(&["--for", &pi.serial], &PROFILE.replace("[wifi]\nssid = 'x'\npsk = 'hunter2-hunter2'\n", ""));
    pi.offer();
    let list = lab.done(&["profile", "list"]);
    let show = lab.done(&["profile", "show", "--group", "lab"]);
    let archive = lab.folder.path().join("root.tar.zst");
    lab.done(&["image", "add", archive.to_str().unwrap(), "--force", "--name", "lab", "--default"]);
    wait_until("the Pi is on record", || lab.done(&["devices"]).contains(&*pi.serial));
    let render = lab.done(&["profile", "render", &pi.serial]);
    for text in [&set, &list, &show, &render, &lab.server.log(), &lab.done(&["device", &pi.serial])] {
        assert!(!text.contains("hunter2") && !text.contains("$6$"), "{text}");
    }
    assert!(show.contains("psk = \"(secret)\"") && list.contains("group lab"), "{show}{list}");
    assert!(
        render.contains("file      root:/etc/token 0600 0:0") && render.contains("password (secret)"),
        "{render}"
    );
    let revealed = lab.done(&["profile", "render", "--reveal", &pi.serial, "--image", "lab"]);
    assert!(revealed.contains("    hunter2\n") && revealed.contains("password $6$"), "{revealed}");
    assert_eq!(lab.done(&["profile", "show", "--group", "lab", "--reveal"]), PROFILE);
    // On the disk nobody but the owner reads them.
    let file = lab.server.state().join("piman.db");
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_rendered_is_what_a_pi_gets() {
    let lab = Lab::new(&[]);
    lab.set(&[], "hostname = 'lab-{ordinal}'\nssh = true\n[[scripts]]\nname = 'one'\ncontent = \"#!/bin/sh\\ntrue\\n\"");
    let archive = lab.folder.path().join("root.tar.zst");
    lab.done(&["image", "add", archive.to_str().unwrap(), "--force", "--name", "lab", "--default"]);
    let pi = lab.pi(2, ABLE);
    let bundle = pi.bundle(pi.offer().more.personal);
    wait_until("the Pi is on record", || lab.done(&["devices"]).contains(&*pi.serial));
    let shown = lab.done(&["profile", "render", "--reveal", &pi.serial]);
    let (heading, items) = shown.split_once('\n').unwrap();
    assert!(heading.contains("number 1") && heading.contains("(plain, boots from the network)"), "{heading}");
    assert_eq!(items, piman::images::personalise::items(&Bundle::parse(&bundle).unwrap()));
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_changed() {
    let lab = Lab::new(&[]);
    let wrong = |text: &str, more: &[&str]| {
        let file = lab.write("wrong.toml", text);
        let (done, said) = lab.piman(&[&["profile", "set", file.to_str().unwrap()], more].concat());
        assert!(!done, "{said}");
        said
    };
    for (text, more, says) in [
        ("hostname = 'a_b'", &[][..], "wrong.toml: line 1, `hostname`: `a_b` is no host name"),
        ("[wifi]\nssid = 'x'\npsk = 'hunter2", &[], "line 3, `psk`"),
        ("[device]\nordinal = 3", &[], "set this profile with --for DEVICE"),
        ("[[files]]\npath = '/a'\nfrom = 'none'", &[], "none"),
        ("", &["--for", "10.0.0"], "piman devices"),
    ] {
        let said = wrong(text, more);
        assert!(said.contains(says) && !said.contains("hunter2"), "{text}: {said}");
    }
    let mut check = Command::new(binaries::piman());
    check.args(["profile", "check"]).arg(lab.write("good.toml", "locale = 'C.UTF-8'"));
    let out = check.output().unwrap();
    assert!(
        out.status.success() && String::from_utf8_lossy(&out.stdout).contains("is a sound profile: locale")
    );
    assert!(lab.done(&["profile", "list"]).contains("there is no profile"));
    assert!(!lab.piman(&["profile", "remove"]).0 && !lab.piman(&["profile", "show"]).0);
    // A number that is in use.
    lab.set(&[], "hostname = 'lab-{ordinal}'");
    lab.pi(2, ABLE).offer();
    let said = wrong("[device]\nordinal = 1", &["--for", "10000000cafe0003"]);
    assert!(
        said.contains("10000000cafe0002 has this number") && said.contains("nothing was changed"),
        "{said}"
    );
    lab.set(&["--for", "10000000cafe0003"], "[device]\nordinal = 33");
    let pi = lab.pi(3, ABLE);
    assert_eq!(host_name(&pi.bundle(pi.offer().more.personal)), "lab-33");
    // Two that would have one name, when both are on record.
    wait_until("both Pis are on record", || {
        let devices = lab.done(&["devices"]);
        ["10000000cafe0002", "10000000cafe0003"].iter().all(|pi| devices.contains(pi))
    });
    let warned = lab.set(&[], "hostname = 'same'");
    assert!(warned.contains("10000000cafe0002 and 10000000cafe0003 would both be called same"), "{warned}");
}
