//! Which image of several is taken: by its name, then by the processor that it is for.

use anyhow::{Context, ensure};

use super::digest::Digest;
use super::json::{
    Config, Descriptor, Document, Platform, Saved, begin, bytes, document, parse, part, shown,
};
use super::layer::{Check, Layer};
use super::store::Store;
use crate::images::import::{Form, Wish};

/// The most indexes that may be one in another.
const DEPTH_MAX: u32 = 4;
/// The most images of all indexes together, and the most of these.
const IMAGES_MAX: usize = 1024;
/// The most layers of an image.
const LAYERS_MAX: usize = 1024;

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// The image that is taken.
pub(super) struct Chosen {
    pub(super) form: Form,
    /// What it is called, as far as it is, and for which processor it is.
    pub(super) what: String,
    /// From the lowest to the highest.
    pub(super) layers: Vec<Layer>,
}

/// One of the images that there are.
struct Candidate {
    /// Which entry of the top it is, or is in.
    top: usize,
    platform: Platform,
    at: At,
}

enum At {
    /// The manifest.
    Oci(Descriptor),
    Saved(Saved),
}

/// What the top names: one image, or one for several processors.
struct Top {
    id: String,
    names: Vec<String>,
}

/// The image in a store; `None` if it has something else in it.
///
/// # Errors
/// If what there is cannot be understood, or it is not clear which image is meant.
pub(super) fn choose(store: &Store, wish: &Wish<'_>) -> anyhow::Result<Option<Chosen>> {
    let (form, mut tops, mut candidates) = if store.has("oci-layout") && store.has("index.json") {
        let (tops, candidates) = layout(store)?;
        (Form::Oci, tops, candidates)
    } else if let Some(images) = saved(store)? {
        let (tops, candidates) = in_saved(store, images)?;
        (Form::DockerSave, tops, candidates)
    } else {
        return Ok(None);
    };
    if let Some(tag) = wish.tag {
        let listed = list(&tops);
        tops.0.retain(|(_, top)| top.is_called(tag));
        ensure!(!tops.0.is_empty(), "there is no image `{}` in it, but {listed}", shown(tag));
        candidates.retain(|c| tops.has(c.top));
    }
    // What only signs another one leads to none.
    tops.0.retain(|(at, _)| candidates.iter().any(|c| c.top == *at));
    // The first of the best.
    candidates.sort_by_key(|c| c.platform.rank().unwrap_or(u8::MAX));
    ensure!(
        !are_several(form, &tops, &candidates),
        "it holds several images: say which with --tag: {}",
        list(&tops)
    );
    let found: Vec<_> = candidates.iter().map(|c| c.platform.to_string()).collect();
    let best = candidates.into_iter().next().context("there is no image in it")?;
    ensure!(
        best.platform.rank().is_some() || wish.force,
        "it is for {}, which no Raspberry Pi is: build or pull it for linux/arm64, for example with `docker pull \
         --platform linux/arm64`. Nothing was added; --force takes it as it is",
        found.join(", ")
    );
    let name = tops.0.iter().find(|(at, _)| *at == best.top).and_then(|(_, top)| top.names.first());
    let name = name.map_or(String::new(), |name| format!("{} ", shown(name)));
    let platform = best.platform.clone();
    let layers = layers(store, best).with_context(|| format!("the image {name}for {platform}"))?;
    let count = if layers.len() == 1 { "1 layer".into() } else { format!("{} layers", layers.len()) };
    Ok(Some(Chosen { form, what: format!("{name}for {platform}, {count}"), layers }))
}

/// The entries of the top that are left, with their numbers.
struct Tops(Vec<(usize, Top)>);

/// Whether it takes more than the processor to choose: those of one name, or without, may be one image for several.
fn are_several(form: Form, tops: &Tops, candidates: &[Candidate]) -> bool {
    let [(_, first), others @ ..] = &tops.0[..] else { return false };
    let is_other = |(_, top): &(usize, Top)| form == Form::DockerSave || top.names != first.names;
    let mut same = candidates.iter().filter(|c| candidates.first().is_some_and(|b| b.platform == c.platform));
    let best = same.next().map(|c| c.top);
    others.iter().any(is_other) || same.any(|c| Some(c.top) != best)
}

impl Tops {
    fn has(&self, at: usize) -> bool {
        self.0.iter().any(|(n, _)| *n == at)
    }
}

impl Top {
    /// Whether this names it.
    fn is_called(&self, tag: &str) -> bool {
        self.id == tag || self.names.iter().any(|name| name == tag || full(name) == full(tag))
    }
}

/// A name with what Docker leaves out.
fn full(name: &str) -> String {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let last = name.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) { name.into() } else { format!("{name}:latest") }
}

fn list(tops: &Tops) -> String {
    let names = tops.0.iter().map(|(_, top)| top.names.first().map_or_else(|| shown(&top.id), |n| shown(n)));
    let names: Vec<_> = names.take(64).collect();
    names.join(", ")
}

/// The images of an OCI image layout.
fn layout(store: &Store) -> anyhow::Result<(Tops, Vec<Candidate>)> {
    #[derive(serde::Deserialize)]
    struct Version {
        #[serde(rename = "imageLayoutVersion")]
        version: String,
    }
    let version: Version = parse(&top_file(store, "oci-layout")?, "oci-layout")?;
    let version = version.version;
    ensure!(version.starts_with("1."), "its layout has version `{}`, and only 1 is known", shown(&version));
    let index: Document = parse(&top_file(store, "index.json")?, "index.json")?;
    let mut tops: Vec<(usize, Top)> = Vec::new();
    let mut found = Found::default();
    for descriptor in index.manifests.context("`index.json` names no manifests")? {
        let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        let names = names.iter().filter_map(|key| descriptor.annotations.as_ref()?.get(*key).cloned());
        if let Some((_, known)) = tops.iter_mut().find(|(_, top)| top.id == descriptor.digest) {
            known.names.extend(names);
            continue;
        }
        tops.push((tops.len(), Top { id: descriptor.digest.clone(), names: names.collect() }));
        collect(store, descriptor, tops.len() - 1, 0, &mut found)?;
    }
    Ok((Tops(tops), found.candidates))
}

/// What was found so far.
#[derive(Default)]
struct Found {
    candidates: Vec<Candidate>,
    /// How many indexes and manifests were read.
    documents: usize,
}

fn top_file(store: &Store, name: &str) -> anyhow::Result<Vec<u8>> {
    bytes(&store.blob(name)?.with_context(|| format!("`{name}` is missing"))?, name)
}

/// The images that a descriptor leads to.
fn collect(
    store: &Store,
    descriptor: Descriptor,
    top: usize,
    depth: u32,
    found: &mut Found,
) -> anyhow::Result<()> {
    ensure!(depth <= DEPTH_MAX, "its indexes are in each other more than {DEPTH_MAX} times");
    let is_about_another =
        descriptor.annotations.as_ref().is_some_and(|a| a.contains_key("vnd.docker.reference.type"));
    if is_about_another || descriptor.platform.as_ref().is_some_and(Platform::is_unknown) {
        return Ok(());
    }
    let kind = &*descriptor.media_type;
    ensure!(
        kind.is_empty() || INDEXES.contains(&kind) || MANIFESTS.contains(&kind),
        "`{}` is `{}`, which is no image that piman knows",
        shown(&descriptor.digest),
        shown(kind)
    );
    if MANIFESTS.contains(&kind)
        && let Some(platform) = descriptor.platform.clone()
    {
        found.candidates.push(Candidate { top, platform, at: At::Oci(descriptor) });
    } else {
        found.documents += 1;
        ensure!(found.documents <= IMAGES_MAX, "it holds more than {IMAGES_MAX} indexes and images");
        // What a machine did not pull is listed all the same.
        match document::<Document>(store, &descriptor)? {
            Some(Document { manifests: Some(manifests), .. }) => {
                for descriptor in manifests {
                    collect(store, descriptor, top, depth + 1, found)?;
                }
            }
            Some(Document { config: Some(config), .. }) if descriptor.platform.is_none() => {
                let config = config_of(store, &config)?;
                found.candidates.push(Candidate { top, platform: config.platform, at: At::Oci(descriptor) });
            }
            _ => {
                let platform = descriptor.platform.clone().unwrap_or_default();
                found.candidates.push(Candidate { top, platform, at: At::Oci(descriptor) });
            }
        }
    }
    ensure!(found.candidates.len() <= IMAGES_MAX, "it holds more than {IMAGES_MAX} images");
    Ok(())
}

fn config_of(store: &Store, descriptor: &Descriptor) -> anyhow::Result<Config> {
    let kind = &*descriptor.media_type;
    ensure!(CONFIGS.contains(&kind), "it is no image of a system, but `{}`", shown(kind));
    document(store, descriptor)?
        .with_context(|| format!("its configuration is missing ({})", shown(&descriptor.digest)))
}

/// What `docker save` wrote, if it is that.
fn saved(store: &Store) -> anyhow::Result<Option<Vec<Saved>>> {
    let Some(blob) = store.blob("manifest.json").ok().flatten() else { return Ok(None) };
    let begin = begin(&blob, "manifest.json")?;
    if !begin.windows(8).any(|window| window == b"\"Layers\"") {
        return Ok(None);
    }
    parse(&bytes(&blob, "manifest.json")?, "manifest.json").map(Some)
}

fn in_saved(store: &Store, images: Vec<Saved>) -> anyhow::Result<(Tops, Vec<Candidate>)> {
    ensure!(images.len() <= IMAGES_MAX, "it holds more than {IMAGES_MAX} images");
    let (mut tops, mut candidates): (Vec<(usize, Top)>, _) = (Vec::new(), Vec::new());
    for mut image in images {
        let names = image.repo_tags.take().unwrap_or_default();
        // Under its old name and under its new one.
        if let Some((_, known)) = tops.iter_mut().find(|(_, top)| top.id == image.config) {
            known.names.extend(names);
            continue;
        }
        let platform = saved_config(store, &image.config)?.platform;
        candidates.push(Candidate { top: tops.len(), platform, at: At::Saved(image) });
        let id = candidates.last().and_then(|c| match &c.at {
            At::Saved(image) => Some(image.config.clone()),
            At::Oci(_) => None,
        });
        tops.push((tops.len(), Top { id: id.unwrap_or_default(), names }));
    }
    Ok((Tops(tops), candidates))
}

fn saved_config(store: &Store, name: &str) -> anyhow::Result<Config> {
    let blob =
        store.blob(name)?.with_context(|| format!("its configuration `{}` is missing", shown(name)))?;
    let bytes = bytes(&blob, name)?;
    // Its name is its digest, but for some writers.
    let last = name.rsplit('/').next().unwrap_or_default();
    let last = last.strip_prefix("sha256:").unwrap_or(last);
    if let Some(digest) = Digest::from_hex(last.strip_suffix(".json").unwrap_or(last)) {
        let found = Digest::of(&bytes);
        ensure!(found == digest, "`{}` is damaged: its digest is {found}", shown(name));
    }
    parse(&bytes, name)
}

/// The layers of an image, none of them read yet.
fn layers(store: &Store, image: Candidate) -> anyhow::Result<Vec<Layer>> {
    let (config, layers): (_, Vec<_>) = match image.at {
        At::Oci(descriptor) => {
            let document: Option<Document> = document(store, &descriptor)?;
            let document = document.with_context(|| {
                format!(
                    "its manifest is listed, but not there ({}): `docker pull --platform {}` gets it",
                    shown(&descriptor.digest),
                    image.platform
                )
            })?;
            let config = config_of(store, &document.config.context("its manifest has no configuration")?)?;
            let layers = document.layers.context("its manifest has no list of layers")?;
            (config, layers.into_iter().map(LayerAt::Oci).collect())
        }
        At::Saved(saved) => {
            let layers = saved.layers.unwrap_or_default();
            (saved_config(store, &saved.config)?, layers.into_iter().map(LayerAt::Saved).collect())
        }
    };
    let total = layers.len();
    ensure!(total > 0, "it has no layers, so there is nothing to install");
    ensure!(total <= LAYERS_MAX, "it has {total} layers, more than the {LAYERS_MAX} that it may have");
    let diff_ids = config.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
    ensure!(diff_ids.len() == total, "it has {total} layers, and its configuration names {}", diff_ids.len());
    let numbered = layers.into_iter().zip(diff_ids).zip(1..);
    numbered
        .map(|((at, unpacked), number)| {
            let name = match &at {
                LayerAt::Oci(descriptor) => shown(&descriptor.digest),
                LayerAt::Saved(name) => format!("`{}`", shown(name)),
            };
            let label = format!("layer {number} of {total} ({name})");
            let layer = at.open(store, &unpacked).with_context(|| label.clone())?;
            Ok(Layer { label, ..layer })
        })
        .collect()
}

/// Where a layer is.
enum LayerAt {
    Oci(Descriptor),
    Saved(String),
}

impl LayerAt {
    fn open(&self, store: &Store, unpacked: &str) -> anyhow::Result<Layer> {
        let unpacked = Digest::parse(unpacked)?;
        let (found, packed) = match self {
            Self::Oci(descriptor) => {
                is_taken(&descriptor.media_type)?;
                match part(store, descriptor)? {
                    Some((blob, digest)) => (Some(blob), Some(digest)),
                    None => (None, None),
                }
            }
            Self::Saved(name) => (store.blob(name)?, None),
        };
        let blob = found.context("it is missing: the image was not saved whole")?;
        Ok(Layer { label: String::new(), blob, check: Check { packed, unpacked } })
    }
}

/// Whether layers of this type can be applied.
fn is_taken(kind: &str) -> anyhow::Result<()> {
    let shown = shown(kind);
    ensure!(!kind.contains("encrypted"), "it is encrypted (`{shown}`): decrypt the image first");
    ensure!(
        !kind.contains("nondistributable") && !kind.contains(".foreign."),
        "it is one that may not be passed on (`{shown}`), so images only name where it can be had"
    );
    ensure!(LAYERS.contains(&kind), "it is `{shown}`, a type of layer that piman does not know");
    Ok(())
}
