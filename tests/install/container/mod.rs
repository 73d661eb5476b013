//! Container images, made here by hand with real digests: what their layers become is what root makes of them with
//! GNU tar and rm; which of several is taken; and what is refused, which leaves nothing behind.

mod choice;
mod forms;
mod pipes;
mod refusals;
mod rules;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use piman_tests::tar::Tar;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(bytes))
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(bytes).unwrap();
    packer.finish().unwrap()
}

/// A layer, as it is stored.
#[derive(Clone)]
struct Layer {
    kind: &'static str,
    stored: Vec<u8>,
    /// Of what is packed in it.
    diff_id: String,
}

impl Layer {
    fn new(kind: &'static str, tar: &[u8]) -> Self {
        let stored = match kind {
            ZSTD => zstd::encode_all(tar, 1).unwrap(),
            GZIP | DOCKER_GZIP => gzip(tar),
            _ => tar.to_vec(),
        };
        Self { kind, stored, diff_id: digest(tar) }
    }

    /// Files with their contents; what ends with `/` is a directory.
    fn of(files: &[(&str, &str)]) -> Self {
        let mut tar = Tar::new();
        for (name, content) in files {
            let kind = if name.ends_with('/') { b'5' } else { b'0' };
            tar.push(name.as_bytes(), kind, b"", content.as_bytes());
        }
        Self::new(GZIP, &tar.end())
    }
}

/// An OCI image layout in the making.
struct Layout(PathBuf);

impl Layout {
    fn new(folder: &Path) -> Self {
        fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        Self(folder.into())
    }

    /// Adds a blob; its descriptor.
    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        fs::write(self.path(bytes), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
    }

    fn path(&self, bytes: &[u8]) -> PathBuf {
        self.0.join("blobs/sha256").join(hex(bytes))
    }

    fn json(&self, kind: &str, value: &Value) -> Value {
        self.blob(kind, value.to_string().as_bytes())
    }

    /// The manifest of an image with these layers and this configuration.
    fn manifest(&self, config: &Value, layers: &[Layer]) -> Value {
        let layers: Vec<_> = layers.iter().map(|layer| self.blob(layer.kind, &layer.stored)).collect();
        json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": self.json(CONFIG, config), "layers": layers})
    }

    /// Adds an image; its descriptor, without a platform.
    fn image(&self, platform: &str, layers: &[Layer]) -> Value {
        self.json(MANIFEST, &self.manifest(&config(platform, layers), layers))
    }

    fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        fs::write(self.0.join("index.json"), index.to_string()).unwrap();
    }
}

/// `os/architecture/variant`.
fn platform(text: &str) -> Value {
    let mut parts = text.split('/');
    let mut value = json!({"os": parts.next(), "architecture": parts.next()});
    if let Some(variant) = parts.next() {
        value["variant"] = variant.into();
    }
    value
}

fn config(of: &str, layers: &[Layer]) -> Value {
    let mut value = platform(of);
    let ids: Vec<_> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    value["rootfs"] = json!({"type": "layers", "diff_ids": ids});
    value
}

fn with(mut value: Value, key: &str, what: impl Into<Value>) -> Value {
    value[key] = what.into();
    value
}

/// A descriptor with the name of an image.
fn named(descriptor: Value, name: &str) -> Value {
    with(descriptor, "annotations", json!({"org.opencontainers.image.ref.name": name}))
}
