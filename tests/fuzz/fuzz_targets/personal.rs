//! Bundles for cards: any bytes are read or refused, and what was read asks for nothing that may not be, and is the same
//! when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use piman_core::install::personal::{Bundle, Draft, Item};

fuzz_target!(|data: &[u8]| {
    check(data);
    check(&[b"piman-personal 1\n", data].concat());
});

fn check(bytes: &[u8]) {
    let Ok(bundle) = Bundle::parse(bytes) else { return };
    let mut draft = Draft::default();
    for item in bundle.items() {
        if let Item::File { path, .. } | Item::Folder { path, .. } | Item::Remove { path, .. } = item {
            assert!(path.starts_with('/') && path.split('/').skip(1).all(|name| !matches!(name, "" | "." | "..")));
        }
        draft.add(&item).expect("an item that was read");
    }
    let again = Bundle::parse(draft.bytes()).expect("a bundle that was written");
    assert!(again.items().eq(bundle.items()));
}
