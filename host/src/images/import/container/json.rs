//! The JSON in container images: OCI image specification 1.1, Docker's manifests of version 2, and `docker save`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::digest::Digest;
use super::store::{Blob, Store};

/// The largest index, manifest or configuration, in bytes; registries have the same limit.
const JSON_MAX: u64 = 4 << 20;

/// What another part is, and how it is checked.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// An index or a manifest, which tell each other apart by what they have.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    pub(super) manifests: Option<Vec<Descriptor>>,
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Option<Vec<Descriptor>>,
}

/// For which machines an image is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    pub(super) variant: Option<String>,
}

/// The configuration of an image.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    pub(super) platform: Platform,
    pub(super) rootfs: Option<RootFs>,
}

/// The digests of the layers when they are unpacked.
#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    pub(super) diff_ids: Option<Vec<String>>,
}

/// An image in `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    pub(super) config: String,
    pub(super) repo_tags: Option<Vec<String>>,
    pub(super) layers: Option<Vec<String>>,
}

impl Platform {
    /// How well it suits a Pi, the best first; `None` if not at all.
    pub(super) fn rank(&self) -> Option<u8> {
        if !matches!(&*self.os, "linux" | "") {
            return None;
        }
        match (&*self.architecture, self.variant.as_deref()) {
            ("arm64" | "aarch64", _) => Some(0),
            // Without a variant it is 7, by the specification's table.
            ("arm", None | Some("" | "v7" | "v8")) => Some(1),
            ("arm", Some("v6")) => Some(2),
            _ => None,
        }
    }

    /// What is no image, as what signs one.
    pub(super) fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_unknown = |text: &str| if text.is_empty() { "unknown".into() } else { shown(text) };
        write!(f, "{}/{}", or_unknown(&self.os), or_unknown(&self.architecture))?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{}", shown(variant)),
        }
    }
}

/// A text of an image, for people.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(200).collect::<String>().escape_debug().to_string()
}

/// The part that a descriptor names; `None` if it is missing.
///
/// # Errors
/// If its digest cannot be read, or it has another size.
pub(super) fn part(store: &Store, descriptor: &Descriptor) -> anyhow::Result<Option<(Blob, Digest)>> {
    let digest = Digest::parse(&descriptor.digest)?;
    let Some(blob) = store.blob(&digest.path())? else { return Ok(None) };
    ensure!(
        blob.length == descriptor.size,
        "`{}` has {} bytes, and should have {}: it is cut or damaged",
        digest.path(),
        blob.length,
        descriptor.size
    );
    Ok(Some((blob, digest)))
}

/// What a descriptor's part says; `None` if it is missing.
///
/// # Errors
/// If it is not what the descriptor says, or no JSON of this kind.
pub(super) fn document<T: DeserializeOwned>(
    store: &Store,
    descriptor: &Descriptor,
) -> anyhow::Result<Option<T>> {
    let Some((blob, digest)) = part(store, descriptor)? else { return Ok(None) };
    let path = digest.path();
    let bytes = bytes(&blob, &path)?;
    let found = Digest::of(&bytes);
    ensure!(found == digest, "`{path}` is damaged: its digest is {found}");
    parse(&bytes, &path).map(Some)
}

/// All bytes of a small part.
///
/// # Errors
/// If it is not small, or cannot be read.
pub(super) fn bytes(blob: &Blob, name: &str) -> anyhow::Result<Vec<u8>> {
    let (length, shown) = (blob.length, shown(name));
    ensure!(length <= JSON_MAX, "`{shown}` has {length} bytes, more than the 4 MiB that it may have");
    begin(blob, name)
}

/// As much of a part as a small one may have.
///
/// # Errors
/// If it cannot be read.
pub(super) fn begin(blob: &Blob, name: &str) -> anyhow::Result<Vec<u8>> {
    let (mut bytes, count) = (Vec::new(), AtomicU64::new(0));
    let read = blob.read(&count).take(JSON_MAX).read_to_end(&mut bytes);
    read.with_context(|| format!("reading `{}`", shown(name)))?;
    Ok(bytes)
}

/// What JSON says.
///
/// # Errors
/// If it is not JSON, or something is missing in it.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8], name: &str) -> anyhow::Result<T> {
    serde_json::from_slice(bytes).with_context(|| format!("`{}` cannot be understood", shown(name)))
}
