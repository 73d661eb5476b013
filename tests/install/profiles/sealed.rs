//! A Pi with a key of its own gets its profile sealed for that key: who listens, or fetches the same, reads nothing of it.

use piman_core::install::trust::DeviceKey;
use piman_core::install::trust::seal::{SealError, is_sealed};

use super::{ABLE, Lab, file};

const SECRET: &str = "a passphrase of the room";

#[test]
fn nobody_else_reads_a_profile() {
    let lab = Lab::new(&[]);
    lab.set(&[], &format!("[[files]]\npath = \"/etc/secret\"\ncontent = \"{SECRET}\"\nsecret = true\n"));
    let key = |n: u8| DeviceKey::new([n; 32]).unwrap();
    let bundles: Vec<_> = [1, 2]
        .map(|n| {
            let mut pi = lab.pi(n, ABLE);
            pi.key = Some(key(n).public());
            pi.bundle(pi.offer().more.personal)
        })
        .into();
    for (n, sealed) in [1, 2].into_iter().zip(&bundles) {
        assert!(is_sealed(sealed) && !sealed.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()));
        assert_eq!(key(3 - n).open(&mut sealed.clone()), Err(SealError::NotForThisPi));
        let mut opened = sealed.clone();
        let bundle = key(n).open(&mut opened).unwrap();
        assert_eq!(file(bundle, "/etc/secret").as_deref(), Some(SECRET));
    }
    // The same Pi is told the same again, so that nothing is done twice.
    let mut pi = lab.pi(1, ABLE);
    pi.key = Some(key(1).public());
    assert_eq!(pi.bundle(pi.offer().more.personal), bundles[0]);
    // One without a key can open nothing, and gets it as it always was.
    let plain = lab.pi(3, ABLE);
    assert!(!is_sealed(&plain.bundle(plain.offer().more.personal)));
    // What is no key is refused, and not answered in clear.
    let mut odd = lab.pi(4, ABLE);
    odd.key = Some(piman_core::install::trust::PublicKey([0; 32]));
    assert!(odd.waits().contains("the key that it shows is none"));
}
