//! Which image of several is taken.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::{INDEX, Layer, Layout, config, hex, named, platform, with};
use crate::forms::{copies, image};

/// A layer with a file of this name.
fn layer(name: &str) -> Layer {
    Layer::of(&[("etc/", ""), (&format!("etc/{name}"), "x")])
}

/// An image whose descriptor says for what it is.
fn of(layout: &Layout, what: &str) -> Value {
    with(layout.image(what, &[layer(&what.replace('/', "-"))]), "platform", platform(what))
}

fn add(folder: &Path, more: &[&str]) -> (bool, String) {
    image(folder, &[&["add", "--name", "x", "."], more].concat(), None)
}

/// What is printed when it is added by force.
fn taken(folder: &Path, more: &[&str]) -> String {
    let (ok, text) = add(folder, &[&["--force"], more].concat());
    assert!(ok, "{text}");
    text
}

#[test]
fn the_best_processor_is_taken() {
    for (platforms, want) in [
        (&["linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8"][..], "for linux/arm64/v8,"),
        (&["linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/amd64"], "for linux/arm/v7,"),
        (&["linux/amd64", "linux/arm/v6"], "for linux/arm/v6,"),
        (&["linux/386", "linux/arm"], "for linux/arm,"),
        (&["windows/arm64", "linux/arm64"], "for linux/arm64,"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(folder.path());
        let manifests: Vec<_> = platforms.iter().map(|p| of(&layout, p)).collect();
        layout.index(&manifests);
        assert!(taken(folder.path(), &[]).contains(want), "{platforms:?}");
        // The same in an index of its own, and as configurations alone say it.
        layout.index(&[named(layout.json(INDEX, &json!({"manifests": manifests})), "v1")]);
        assert!(taken(folder.path(), &[]).contains(&format!("v1 {want}")), "{platforms:?}");
        let bare: Vec<_> = platforms.iter().map(|p| layout.image(p, &[layer("x")])).collect();
        layout.index(&bare);
        assert!(taken(folder.path(), &[]).contains(want), "{platforms:?}");
    }
}

#[test]
fn for_no_pi_is_refused_and_taken_by_force() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let layout = Layout::new(folder);
    layout.index(&[of(&layout, "linux/amd64"), of(&layout, "windows/arm64"), of(&layout, "linux/arm/v5")]);
    let (ok, text) = add(folder, &[]);
    let listed = "it is for linux/amd64, windows/arm64, linux/arm/v5, which no Raspberry Pi is";
    assert!(!ok && text.contains(listed) && text.contains("--force"), "{text}");
    assert!(copies(folder).is_empty());
    assert!(taken(folder, &[]).contains("for linux/amd64,"));
}

#[test]
fn what_another_machine_did_not_pull_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let layout = Layout::new(folder);
    let arm64 = of(&layout, "linux/arm64");
    let absent = |what: &str| {
        json!({"mediaType": super::MANIFEST, "digest": super::digest(what.as_bytes()), "size": 9,
               "platform": platform(what)})
    };
    layout.index(&[absent("linux/amd64"), arm64, absent("linux/arm/v7")]);
    assert!(taken(folder, &[]).contains("for linux/arm64,"));
    // But not what is best.
    layout.index(&[of(&layout, "linux/amd64"), absent("linux/arm64")]);
    let (ok, text) = add(folder, &["--force"]);
    assert!(!ok && text.contains("`docker pull --platform linux/arm64` gets it"), "{text}");
}

#[test]
fn several_images_are_chosen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let oci = folder.path().join("oci");
    let layout = Layout::new(&oci);
    let one = |name: &str| layout.image("linux/arm64", &[layer(name)]);
    let long = json!({"io.containerd.image.name": "docker.io/library/two:2", "org.opencontainers.image.ref.name": "2"});
    let three = one("three");
    let id = three["digest"].as_str().unwrap().to_owned();
    layout.index(&[
        named(one("one"), "one:1"),
        with(one("two"), "annotations", long),
        // By two names, and by none.
        named(three.clone(), "reg.example:5000/three:latest"),
        named(three, "four"),
    ]);
    let (ok, text) = add(&oci, &["--force"]);
    let all = "one:1, docker.io/library/two:2, reg.example:5000/three:latest";
    assert!(!ok && text.contains(&format!("say which with --tag: {all}")), "{text}");
    let (ok, text) = add(&oci, &["--force", "--tag", "five"]);
    assert!(!ok && text.contains(&format!("there is no image `five` in it, but {all}")), "{text}");
    assert!(copies(&oci).is_empty());
    for (tag, want) in [
        ("one:1", "one:1 for"),
        ("two:2", "two:2 for"),
        ("docker.io/two:2", "two:2 for"),
        ("2", "two:2 for"),
        ("reg.example:5000/three", "three:latest for"),
        ("four", "three:latest for"),
        (&*id, "three:latest for"),
    ] {
        assert!(taken(&oci, &["--tag", tag]).contains(want), "{tag}");
    }
}

#[test]
fn several_images_of_docker_save_are_chosen_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut images = Vec::new();
    for (name, of) in [("one:1", "linux/arm64"), ("two:latest", "linux/arm/v7"), ("", "linux/amd64")] {
        let layer = layer(of);
        let config = config(of, std::slice::from_ref(&layer)).to_string();
        let files = [format!("{}.json", hex(config.as_bytes())), format!("{}.tar", hex(&layer.stored))];
        fs::write(folder.join(&files[0]), config).unwrap();
        fs::write(folder.join(&files[1]), &layer.stored).unwrap();
        let tags = if name.is_empty() { Value::Null } else { json!([name]) };
        images.push(json!({"Config": files[0], "RepoTags": tags, "Layers": [files[1]]}));
    }
    let id = images[2]["Config"].as_str().unwrap().to_owned();
    fs::write(folder.join("manifest.json"), Value::from(images).to_string()).unwrap();
    let (ok, text) = add(folder, &["--force"]);
    assert!(!ok && text.contains(&format!("say which with --tag: one:1, two:latest, {id}")), "{text}");
    assert!(taken(folder, &["--tag", "two"]).contains("two:latest for linux/arm/v7, 1 layer;"));
    let (ok, text) = add(folder, &["--tag", &id]);
    assert!(!ok && text.contains("it is for linux/amd64, which no"), "{text}");
    assert!(taken(folder, &["--tag", &id]).contains("for linux/amd64, 1 layer;"));
}

#[test]
fn a_tag_is_for_images_alone() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir_all(folder.join("root/etc")).unwrap();
    let (ok, text) = image(folder, &["add", "--force", "--tag", "x", "root"], None);
    assert!(!ok && text.contains("root is a folder, not a container image"), "{text}");
    assert!(copies(folder).is_empty());
}
