//! `piman personalise`: a profile is applied to what is on a card already.

use std::io::{Read as _, Write as _};

use piman_core::install::{BootPersonal, Installation, Notice};

use super::*;

impl Pi<'_> {
    /// As it is after an installation of what it is offered.
    fn installed(mut self) -> Self {
        self.card = Some(self.offer().id);
        self
    }

    #[track_caller]
    fn personal(&self) -> (BootPersonal, BufReader<TcpStream>) {
        match self.ask() {
            (Told::Decided(Decision::Personalise(personal)), stream) => (personal, stream),
            (other, _) => panic!("it was told {other:?}"),
        }
    }

    #[track_caller]
    fn boots(&self) {
        assert_eq!(self.ask().0, Told::Decided(Decision::Boot));
    }

    /// Says on its connection that it has done so, and hangs up.
    fn commits(&self, stream: BufReader<TcpStream>, installation: Option<Installation>) {
        let mut stream = stream.into_inner();
        let id = self.card.unwrap();
        stream.write_all(format!("{}\n", Notice::Committed { id, installation }).as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
}

#[test]
fn an_order_is_done_once_and_until_it_has_succeeded() {
    let lab = Lab::new(&[]);
    lab.set(&[], "hostname = 'lab-{ordinal}'");
    let pi = lab.pi(2, ABLE).installed();
    pi.boots();
    lab.set(&[], "hostname = 'room-{ordinal}'");
    pi.boots();
    let said = lab.done(&["personalise", &pi.serial]);
    assert!(said.contains("its profile is applied when it boots next"), "{said}");
    assert!(lab.done(&["devices"]).contains("profile to be applied"));
    let (first, stream) = pi.personal();
    let bundle = pi.bundle(Some(first.personal));
    assert_eq!(host_name(&bundle), "room-1");
    assert!(Bundle::parse(&bundle).unwrap().items().all(|item| item != RENEW), "its identity stays");
    assert!(first.installation.is_some());
    // It failed: the next boot tries it again, and it is the same.
    let failed = Notice::Failed { stage: piman_core::install::Stage::Personalise, text: "no room" };
    stream.into_inner().write_all(format!("{failed}\n").as_bytes()).unwrap();
    wait_until("it is on its record", || lab.done(&["device", &pi.serial]).contains("no room"));
    let (again, stream) = pi.personal();
    assert_eq!(again, first);
    pi.commits(stream, again.installation);
    wait_until("it is done", || lab.done(&["personalise", "--list"]).contains("completed"));
    pi.boots();
    let record = lab.done(&["device", &pi.serial]);
    assert!(record.contains("its profile is applied, as ordered"), "{record}");
    assert!(!record.contains("no room\n") || record.contains("last error         -"), "{record}");
}

#[test]
fn a_report_on_another_connection_is_recorded_as_what_it_was() {
    let lab = Lab::new(&[]);
    lab.set(&[], "hostname = 'a'");
    let pi = lab.pi(2, ABLE).installed();
    lab.done(&["personalise", &pi.serial]);
    let (told, stream) = pi.personal();
    // The connection is lost, and the agent makes another to say how it ended.
    drop(stream);
    let mut other = pi.connect("control");
    other.write_all(format!("{}\n", Notice::Hello(pi.hello())).as_bytes()).unwrap();
    pi.commits(BufReader::new(other), told.installation);
    wait_until("it is done", || lab.done(&["personalise", "--list"]).contains("completed"));
    let record = lab.done(&["device", &pi.serial]);
    assert!(record.contains("its profile is applied, as ordered"), "{record}");
    assert!(!record.contains("installed: image"), "{record}");
    pi.boots();
    // An installation is one on any connection.
    lab.done(&["reinstall", &pi.serial]);
    let Told::Decided(Decision::Format(Some(offer))) = pi.ask().0 else { panic!("it has no offer") };
    let mut other = pi.connect("control");
    other.write_all(format!("{}\n", Notice::Hello(pi.hello())).as_bytes()).unwrap();
    pi.commits(BufReader::new(other), offer.more.installation);
    wait_until("it is done", || lab.done(&["device", &pi.serial]).contains("installed as ordered: image"));
}

#[test]
fn an_order_can_be_cancelled_and_an_installation_carries_it_out() {
    let lab = Lab::new(&[]);
    lab.set(&[], "hostname = 'a'");
    let pi = lab.pi(2, ABLE).installed();
    lab.done(&["personalise", &pi.serial]);
    assert!(lab.done(&["personalise", &pi.serial]).contains("this was ordered already"));
    lab.done(&["personalise", "--cancel", &pi.serial]);
    pi.boots();
    let (done, said) = lab.piman(&["personalise", "--cancel", &pi.serial]);
    assert!(!done && said.contains("nothing is ordered"), "{said}");
    // Installed anew, it has its profile.
    lab.done(&["personalise", &pi.serial]);
    lab.done(&["reinstall", &pi.serial]);
    let (told, stream) = pi.ask();
    let Told::Decided(Decision::Format(Some(offer))) = told else { panic!("{told:?}") };
    assert!(offer.more.personal.is_some());
    pi.commits(stream, offer.more.installation);
    wait_until("it is done", || !lab.done(&["personalise", "--list"]).contains("waits"));
    pi.boots();
}

#[test]
fn who_cannot_apply_it_boots_all_the_same() {
    let lab = Lab::new(&[]);
    lab.set(&[], "hostname = 'a'");
    let able = lab.pi(2, ABLE).installed();
    let serial = able.serial.clone();
    lab.done(&["personalise", &serial]);
    let record = |says: &str| wait_until(says, || lab.piman(&["device", &serial]).1.contains(says));
    Pi { can: Can::default(), ..lab.pi(2, ABLE).with_card(able.card) }.boots();
    record("the agent on this Pi is too old");
    Pi { can: Can { signed: true, ..ABLE }, ..lab.pi(2, ABLE).with_card(able.card) }.boots();
    record("takes no profile from a server without a certificate");
    lab.pi(2, ABLE).with_card(Some(Hash([9; 32]))).boots();
    record("is not in the list of images any more");
    lab.set(&[], "hostname = '{mac}'");
    able.boots();
    record("its hardware address is needed");
    // It is still ordered.
    lab.set(&[], "hostname = 'b'");
    assert_eq!(host_name(&able.bundle(Some(able.personal().0.personal))), "b");
}

impl Pi<'_> {
    fn with_card(mut self, card: Option<Hash>) -> Self {
        self.card = card;
        self
    }
}
