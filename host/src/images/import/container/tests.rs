//! What a small image may unpack to.

use std::fs;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tar::{Builder, Header};

use super::digest::Digest;
use super::*;

/// A file of so many zeros, or one that only claims to have them, as a layer.
fn layer(name: &str, bytes: u64, stored: usize) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.set_path(name).unwrap();
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_cksum();
    let mut tar = Builder::new(Vec::new());
    tar.append(&header, &*vec![0; stored]).unwrap();
    tar.into_inner().unwrap()
}

/// An image of these layers, each in gzip.
fn image(layers: &[Vec<u8>]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(folder.path().join(digest.path()), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    };
    let packed = |tar: &Vec<u8>| {
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(tar).unwrap();
        blob("application/vnd.oci.image.layer.v1.tar+gzip", &packer.finish().unwrap())
    };
    let ids: Vec<_> = layers.iter().map(|tar| Digest::of(tar).to_string()).collect();
    let config = json!({"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": ids}});
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let manifest = json!({"config": config, "layers": layers.iter().map(packed).collect::<Vec<_>>()});
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let index = json!({"manifests": [blob(kind, manifest.to_string().as_bytes())]});
    fs::write(folder.path().join("index.json"), index.to_string()).unwrap();
    fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    folder
}

#[test]
fn all_layers_together_have_a_limit() {
    const MB: usize = 1_000_000;
    let two = [layer("a", MB as u64, MB), layer("b", MB as u64, MB)];
    let claims = [layer("a", 1 << 40, 0)];
    for (layers, limit, fits) in [
        (&two[..], 3 * MB, true),
        (&two[..1], MB + MB / 2, true),
        (&two, MB + MB / 2, false),
        (&claims, 1000 * MB, false),
    ] {
        let folder = image(layers);
        let store = Store::folder(folder.path()).unwrap();
        let opened = Container::limited(&store, &Wish::default(), limit as u64, &|_| ());
        match opened {
            Ok(Some(container)) => {
                assert!(fits, "{limit}");
                let mut tar = Vec::new();
                container.write(&AtomicU64::new(0), &mut tar).unwrap();
                assert!(tar.len() > layers.len() * MB);
            }
            Ok(None) => panic!("it is an image"),
            Err(e) => {
                assert!(!fits && format!("{e:#}").contains("more than any card holds"), "{limit}: {e:#}");
            }
        }
    }
}
