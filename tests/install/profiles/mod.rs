//! Profiles: what an operator sets, what each Pi is offered of it, and what it can fetch.

mod again; // applied to what is on a card already
mod commands; // setting, showing, listing; nothing secret is shown
mod refused; // what no agent could do
mod sealed; // what only the Pi with the key can read

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use piman_core::hash::Hash;
use piman_core::install::fetch::{Answer, Kind, Request};
use piman_core::install::personal::{Bundle, Item, Place, Renew};
use piman_core::install::trust::PublicKey;
use piman_core::install::{Agent, AgentStep, Can, Decision, Hello, Notice, Offer, Paths, Personal};
use piman_tests::binaries;
use piman_tests::server::{Server, connect_from, wait_until};
use piman_tests::tar::{Header, Tar};

/// The first bytes of a program for a Pi.
fn elf() -> Vec<u8> {
    let mut elf = vec![0; 128];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2;
    elf[18] = 183;
    elf
}

/// A system as small as can be, with systemd and a boot folder with these files.
fn system(boot: &[&str]) -> Vec<u8> {
    let mut tar = Tar::new();
    for folder in
        ["etc/", "sbin/", "usr/", "usr/lib/", "usr/lib/systemd/", "usr/lib/systemd/system/", "boot/"]
    {
        tar.entry(folder.as_bytes(), b'5', b"");
    }
    for program in ["sbin/init", "usr/lib/systemd/systemd"] {
        let (name, content) = (program.as_bytes(), elf());
        let size = content.len() as u64;
        tar.header(&Header { name, mode: 0o755, size, ..Header::default() }).content(&content);
    }
    tar.file(b"usr/lib/systemd/system/ssh.service", b"[Unit]\n");
    for name in boot {
        tar.file(format!("boot/{name}").as_bytes(), b"x");
    }
    tar.end()
}

/// A server with such a system, and a folder for files.
struct Lab {
    server: Server,
    folder: tempfile::TempDir,
}

/// What a Pi is told.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Told {
    Decided(Decision),
    /// To wait, for a reason that is on its record.
    Waits,
}

const ABLE: Can = Can { signed: false, answer: false, disk: false, grow: true, personal: true, early: false };

impl Lab {
    fn new(more: &[&str]) -> Self {
        Self::of(&[], more)
    }

    fn of(boot: &[&str], more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("root.tar.zst");
        fs::write(&archive, zstd::encode_all(&system(boot)[..], 1).unwrap()).unwrap();
        let more = [more, &["--no-images"]].concat();
        let server = Server::start(&archive, &folder.path().join("state"), &more);
        server.wait_log("is good");
        Self { server, folder }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// A command of piman beside the server: whether it did it, and what it said.
    fn piman(&self, words: &[&str]) -> (bool, String) {
        let mut command = Command::new(binaries::piman());
        command.args(words).arg("--state").arg(self.server.state());
        let out = command.output().unwrap();
        (out.status.success(), String::from_utf8([out.stdout, out.stderr].concat()).unwrap())
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let (done, text) = self.piman(words);
        assert!(done, "{words:?}: {text}");
        text
    }

    #[track_caller]
    fn set(&self, whom: &[&str], text: &str) -> String {
        let file = self.write("profile.toml", text);
        self.done(&[&["profile", "set", file.to_str().unwrap()], whom].concat())
    }

    /// The Pi with this number, on an address of its own.
    fn pi(&self, number: u8, can: Can) -> Pi<'_> {
        Pi {
            lab: self,
            number,
            serial: format!("10000000cafe00{number:02x}"),
            can,
            card: None,
            personal: None,
            key: None,
        }
    }
}

struct Pi<'l> {
    lab: &'l Lab,
    number: u8,
    serial: String,
    can: Can,
    /// What is on its card.
    card: Option<Hash>,
    personal: Option<Hash>,
    /// The key that it says it has.
    key: Option<PublicKey>,
}

impl Pi<'_> {
    fn connect(&self, port: &str) -> TcpStream {
        let stream = connect_from([127, 0, 0, self.number], self.lab.server.port(port));
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    fn hello(&self) -> Hello<'_> {
        Hello {
            serial: Some(&self.serial),
            paths: Paths { stream: true, image: self.can.disk },
            can: self.can,
            card: self.card,
            personal: self.personal,
            disk_bytes: 8 << 30,
            root_bytes: (8 << 30) - (48 << 20),
            revision: 2,
            ..Hello::default()
        }
    }

    /// Asks, and returns the connection on which it was told.
    fn ask(&self) -> (Told, BufReader<TcpStream>) {
        let report = if self.card.is_some() { "IS_INSTALLED" } else { "IS_UNINSTALLED" };
        let mut stream = self.connect("control");
        if let Some(key) = self.key {
            let nonce = format!("{:032x}", self.number);
            stream.write_all(format!("PIMAN/1 trust nonce={nonce} key={key} kept=1\n").as_bytes()).unwrap();
        }
        stream.write_all(format!("{}\n{report}\n", Notice::Hello(self.hello())).as_bytes()).unwrap();
        let (mut agent, mut lines) = (Agent::new(), BufReader::new(stream));
        loop {
            let mut line = Vec::new();
            assert!(lines.read_until(b'\n', &mut line).unwrap() > 0, "it hung up");
            match agent.handle(line.trim_ascii_end()) {
                AgentStep::Decided(_, Decision::Wait { .. } | Decision::Never) => {
                    return (Told::Waits, lines);
                }
                AgentStep::Decided(_, decision) => return (Told::Decided(*decision), lines),
                _ => {}
            }
        }
    }

    #[track_caller]
    fn offer(&self) -> Offer {
        let Told::Decided(Decision::Format(Some(offer))) = self.ask().0 else { panic!("it has no offer") };
        offer
    }

    /// Why it waits, as its record has it.
    #[track_caller]
    fn waits(&self) -> String {
        assert_eq!(self.ask().0, Told::Waits);
        // It may not be saved yet that there is such a Pi.
        let record = || self.lab.piman(&["device", &self.serial]).1;
        wait_until("it is on its record", || {
            record().lines().any(|l| l.starts_with("waits  ") && l.len() > 25)
        });
        record().lines().find_map(|l| l.strip_prefix("waits  ")).unwrap().trim().to_owned()
    }

    /// What the fetch port sends it.
    fn fetch(&self, personal: Personal) -> Result<Vec<u8>, String> {
        let mut stream = self.connect("fetch");
        let (id, length) = (personal.hash, personal.bytes.into());
        let request = Request { kind: Kind::Personal, id, offset: 0, length };
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).unwrap();
        match Answer::parse(&line).unwrap() {
            Answer::Ok(length) => {
                let mut bytes = vec![0; usize::try_from(length).unwrap()];
                lines.read_exact(&mut bytes).unwrap();
                Ok(bytes)
            }
            Answer::No(reason) => Err(reason.to_owned()),
            Answer::Wait(_) => panic!("nobody else is here"),
        }
    }

    #[track_caller]
    fn bundle(&self, personal: Option<Personal>) -> Vec<u8> {
        let personal = personal.expect("a bundle");
        let bytes = self.fetch(personal).unwrap();
        assert_eq!(Hash(*blake3::hash(&bytes).as_bytes()), personal.hash);
        bytes
    }
}

const RENEW: Item<'static> = Item::Identity(Renew { machine: true, host_keys: true, disk: true });

/// What a file of the root filesystem is to have in it.
fn file(bundle: &[u8], wanted: &str) -> Option<String> {
    let find = |item| match item {
        Item::File { place: Place::Root, path, content, .. } if path == wanted => {
            Some(String::from_utf8(content.to_vec()).unwrap())
        }
        _ => None,
    };
    Bundle::parse(bundle).unwrap().items().find_map(find)
}

fn host_name(bundle: &[u8]) -> String {
    file(bundle, "/etc/hostname").expect("a host name").trim_end().to_owned()
}

#[test]
fn each_pi_is_offered_what_makes_its_card_its_own() {
    let lab = Lab::new(&[]);
    lab.set(
        &[],
        "hostname = 'lab-{ordinal:02}'\nssh = true\n[[users]]\nname = 'op'\npassword-hash = '$6$hunter2$01234567890123456789'\n
         [[files]]\npath = '/etc/motd'\ncontent = '{{serial}}'\ntemplate = true",
    );
    lab.set(&["--for", "10000000cafe0003"], "hostname = 'door'");
    let pis = [2, 3, 4].map(|number| lab.pi(number, ABLE));
    let offers = [0, 1, 2].map(|n: usize| pis[n].offer().more.personal);
    let bundles = [0, 1, 2].map(|n: usize| pis[n].bundle(offers[n]));
    assert_eq!(bundles.each_ref().map(|b| host_name(b)), ["lab-01", "door", "lab-03"]);
    assert_eq!(file(&bundles[2], "/etc/motd").as_deref(), Some(&*pis[2].serial));
    let items: Vec<_> = Bundle::parse(&bundles[0]).unwrap().items().collect();
    assert_eq!(items[0], RENEW);
    assert!(items.iter().any(|item| matches!(item, Item::User(user) if user.name == "op")));
    // It may be fetched from another address than it was offered to; nothing else is sent by that name.
    let (elsewhere, first) = (lab.pi(9, ABLE), offers[0].unwrap());
    assert_eq!(elsewhere.fetch(first).unwrap(), bundles[0]);
    let unknown = Personal { hash: Hash([7; 32]), ..first };
    assert!(pis[0].fetch(unknown).is_err());
    assert!(pis[0].fetch(Personal { bytes: first.bytes + 1, ..first }).unwrap_err().contains("range"));
    // Its number and its name stay.
    assert_eq!(host_name(&pis[0].bundle(pis[0].offer().more.personal)), "lab-01");
    let record = lab.done(&["device", "10000000cafe0002"]);
    assert!(record.contains("host name          lab-01"), "{record}");
    for text in [lab.server.log(), record, lab.done(&["devices"]), lab.done(&["devices", "--json"])] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn without_a_profile_cards_get_identities_of_their_own() {
    let lab = Lab::new(&[]);
    let able = lab.pi(2, ABLE);
    let bundle = able.bundle(able.offer().more.personal);
    assert_eq!(Bundle::parse(&bundle).unwrap().items().collect::<Vec<_>>(), [RENEW]);
    // One with a key, too: that needs nobody's trust. An older agent installs as it always did.
    let keyed = lab.pi(3, Can { signed: true, ..ABLE });
    assert!(Bundle::parse(&keyed.bundle(keyed.offer().more.personal)).unwrap().is_identity_only());
    assert_eq!(lab.pi(4, Can::default()).offer().more.personal, None);
    let keep = Lab::new(&["--identity", "keep"]);
    assert_eq!(keep.pi(2, ABLE).offer().more.personal, None);
    keep.set(&[], "identity = 'renew'");
    assert!(keep.pi(2, ABLE).offer().more.personal.is_some(), "the profile wins");
}

#[test]
fn who_cannot_have_its_profile_waits_and_says_why() {
    let lab = Lab::new(&[]);
    lab.set(&[], "hostname = '{group}-{ordinal}'");
    let lost = lab.pi(2, ABLE).waits();
    assert!(lost.contains("its group is needed, and it has none"), "{lost}");
    lab.done(&["group", "join", "lab", "10000000cafe0003"]);
    let here = lab.pi(3, ABLE);
    assert_eq!(host_name(&here.bundle(here.offer().more.personal)), "lab-2", "the others do not wait");
    let old = lab.pi(3, Can::default()).waits();
    assert!(old.contains("the agent on this Pi is too old"), "{old}");
    // A Pi with a key is installed, without the profile, which its record says.
    lab.pi(3, Can { signed: true, ..ABLE }).offer();
    wait_until("it is on its record", || {
        lab.done(&["device", "10000000cafe0003"]).contains("is not applied")
    });
    // One host name for two.
    lab.set(&[], "hostname = 'same'");
    lab.pi(4, ABLE).offer();
    let second = lab.pi(5, ABLE).waits();
    assert!(second.contains("its host name would be same, which 10000000cafe0004 has"), "{second}");
    lab.done(&["profile", "remove", "--for", "10000000cafe0004"]);
    lab.pi(5, ABLE).offer();
    // What the image does not have.
    lab.set(&[], "ntp = ['10.0.0.1']");
    let image = lab.pi(6, ABLE).waits();
    assert!(image.contains("neither systemd-timesyncd nor chrony"), "{image}");
    lab.done(&["profile", "remove"]);
    lab.pi(6, ABLE).offer();
}

#[test]
fn an_old_pi_waits_for_its_profile_too() {
    let lab = Lab::new(&[]);
    lab.set(&[], "hostname = 'a'");
    let mut stream = connect_from([127, 0, 0, 7], lab.server.port("control"));
    stream.write_all(b"IS_UNINSTALLED\n").unwrap();
    wait_until("it waits", || {
        lab.piman(&["device", "127.0.0.7"]).1.contains("which an old Pi is unable to apply")
    });
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(!said.contains("format"), "{said}");
}

#[test]
fn an_image_that_boots_from_the_card_has_a_boot_partition_that_is_filled() {
    let boot =
        ["kernel8.img", "config.txt", "cmdline.txt", "bcm2711-rpi-4-b.dtb", "start4.elf", "fixup4.dat"];
    let lab = Lab::of(&boot, &[]);
    assert_eq!(lab.pi(2, ABLE).offer().more.boot_bytes, 64 << 20);
    assert_eq!(lab.pi(3, Can::default()).offer().more.boot_bytes, 0, "it knows of none");
    let archive = lab.folder.path().join("root.tar.zst");
    let add = |more: &[&str]| {
        let archive = archive.to_str().unwrap();
        lab.done(&[&["image", "add", archive, "--force", "--name", "lab", "--default"], more].concat())
    };
    let said = add(&["--description", "for the lab", "--release", "2026-11"]);
    assert!(said.contains("kind: plain; boots from the card, with a boot partition of 67.1 MB"), "{said}");
    assert!(said.contains("files are missing for: Pi 3 (bootcode.bin"), "{said}");
    // What was written just now is not kept: it may still change.
    wait_until("it is known", || {
        add(&["--description", "for the lab", "--release", "2026-11"]);
        let list = lab.done(&["image", "list"]);
        ["KIND", "plain", "card", "2026-11", "for the lab"].iter().all(|text| list.contains(text))
    });
    add(&["--boot-size", "256M"]);
    assert_eq!(lab.pi(2, ABLE).offer().more.boot_bytes, 256 << 20);
    let said = add(&["--boot", "network"]);
    assert!(said.contains("boots from the network"), "{said}");
    assert_eq!(lab.pi(2, ABLE).offer().more.boot_bytes, 0);
    // Without a kernel it boots from the network, and it is said what is missing.
    let bare = Lab::of(&boot[1..], &[]);
    assert_eq!(bare.pi(2, ABLE).offer().more.boot_bytes, 0);
    let archive = bare.folder.path().join("root.tar.zst");
    let add = ["image", "add", archive.to_str().unwrap(), "--force", "--name", "lab"];
    let said = bare.done(&add);
    assert!(said.contains("boots from the network, at every boot: it has no kernel (kernel8.img)"), "{said}");
    let said = bare.done(&[&add[..], &["--boot", "card"]].concat());
    assert!(said.contains("although it has no kernel"), "{said}");
    for size in ["63M", "17G", "0", "x"] {
        assert!(!bare.piman(&[&add[..], &["--boot-size", size]].concat()).0, "{size}");
    }
}
