//! What is damaged, cut, or not understood is refused with the part that is at fault, and leaves nothing.

use std::fs;
use std::path::Path;

use piman_tests::tar::{Header, Tar};
use serde_json::{Value, json};

use super::{GZIP, INDEX, Layer, Layout, MANIFEST, PLAIN, config, digest, gzip, hex, with};
use crate::forms::{copies, image, script};

fn layers() -> Vec<Layer> {
    vec![Layer::of(&[("etc/", ""), ("etc/one", "1")]), Layer::of(&[("etc/two", &"noise ".repeat(999))])]
}

/// Has an image made and spoilt in a folder, and looks at how it is refused: as folder, archive, and out of a pipe.
#[track_caller]
fn refused(want: &str, make: impl FnOnce(&Layout)) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(&Layout::new(&folder.join("image")));
    script(folder, "tar -C image -cf image.tar . && gzip -k image.tar");
    for (file, stdin) in
        [("image", None), ("image.tar", None), ("-", Some("image.tar")), ("-", Some("image.tar.gz"))]
    {
        let (ok, text) = image(folder, &["add", "--force", "--name", "x", file], stdin);
        assert!(!ok && text.contains(want), "{file}: {text}");
        assert!(text.contains("is not usable"), "{text}");
        assert_eq!(text.lines().filter(|line| !line.contains(" WARN ")).count(), 1, "{text}");
        assert!(copies(folder).is_empty(), "{:?}", copies(folder));
    }
}

/// With the manifest changed.
#[track_caller]
fn with_manifest(want: &str, change: impl FnOnce(&Layout, Value) -> Value) {
    refused(want, |layout| {
        let layers = layers();
        let manifest = layout.manifest(&config("linux/arm64", &layers), &layers);
        layout.index(&[layout.json(MANIFEST, &change(layout, manifest))]);
    });
}

#[test]
fn damaged_and_missing_blobs() {
    let spoilt = |want: &str, spoil: &dyn Fn(&Path, Vec<u8>)| {
        refused(want, |layout| {
            let layers = layers();
            layout.index(&[layout.image("linux/arm64", &layers)]);
            let path = layout.path(&layers[1].stored);
            spoil(&path, fs::read(&path).unwrap());
        });
    };
    let second = |what: &str| format!("layer 2 of 2 ({}): {what}", digest(&layers()[1].stored));
    spoilt(&second("it is missing"), &|path, _| fs::remove_file(path).unwrap());
    spoilt("it is cut or damaged", &|path, bytes| fs::write(path, &bytes[..bytes.len() - 9]).unwrap());
    spoilt(&second("it is damaged: its digest is sha256:"), &|path, mut bytes| {
        bytes[40] ^= 1;
        fs::write(path, bytes).unwrap();
    });
    let other = Layer::of(&[("etc/two", &"other ".repeat(999))]);
    spoilt(&second("it is "), &|path, bytes| {
        let mut other = other.stored.clone();
        other.resize(bytes.len(), 0);
        fs::write(path, other).unwrap();
    });
    refused("is damaged: its digest is sha256:", |layout| {
        let image = layout.image("linux/arm64", &layers());
        let path = layout.0.join("blobs/sha256").join(&image["digest"].as_str().unwrap()[7..]);
        let manifest = fs::read_to_string(&path).unwrap();
        fs::write(&path, manifest.replace("+gzip", "+gzjp")).unwrap();
        layout.index(&[image]);
    });
    refused("its configuration is missing", |layout| {
        let layers = layers();
        let config = config("linux/arm64", &layers).to_string();
        layout.index(&[layout.image("linux/arm64", &layers)]);
        fs::remove_file(layout.path(config.as_bytes())).unwrap();
    });
}

#[test]
fn layers_that_are_none() {
    let one = |want: &str, layer: Layer| {
        refused(want, |layout| layout.index(&[layout.image("linux/arm64", &[layer])]));
    };
    let tar = Layer::of(&[("etc/one", &"noise ".repeat(999))]);
    // Truncated before it was given its digest.
    let cut = tar.stored[..tar.stored.len() / 2].to_vec();
    one("layer 1 of 1 (sha256:", Layer { stored: cut.clone(), ..tar.clone() });
    one("layer 1 of 1 (sha256:", Layer { diff_id: digest(&cut), kind: PLAIN, stored: cut });
    let mut plain = Tar::new().file(b"a", &[7; 5000]).end();
    plain.truncate(3000);
    one("the archive is truncated", Layer::new(GZIP, &plain));
    one("the archive is truncated", Layer::new(PLAIN, &plain));
    one(
        "unpacked it should be sha256:0",
        Layer { diff_id: format!("sha256:{}", "0".repeat(64)), ..tar.clone() },
    );
    one("it is no archive: it begins with `hello", Layer::new(PLAIN, b"hello, world"));
    one("it is a zip file", Layer::new(PLAIN, b"PK\x03\x04...."));
    one("no tar header here", Layer::new(GZIP, &[1; 5000]));
    let twice = gzip(&Tar::new().file(b"a", b"x").end());
    one("layer 1 of 1", Layer::new(GZIP, &twice));
    // A small file that claims to be more than all cards.
    let mut bomb = Tar::new();
    bomb.header(&Header { name: b"bomb", size: 1 << 41, ..Header::default() });
    one("more than any card holds", Layer::new(GZIP, &bomb.end()));
    // Few names with directories that no entry describes, all of them apart.
    let mut many = Tar::new();
    for number in 0..2600 {
        let name = format!("{number:06}/{}x", "a/".repeat(440));
        many.pax(b'x', &[("path", name.as_bytes())]).file(b"long", b"");
    }
    one("as more than a million others are", Layer::new(GZIP, &many.end()));
    one("its layers hold nothing", Layer::new(GZIP, &Tar::new().end()));
    one("its layers hold nothing", Layer::new(PLAIN, b""));
}

#[test]
fn descriptors_that_mean_something_else() {
    for (kind, want) in [
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "it is encrypted"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "may not be passed on"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "may not be passed on"),
        ("application/x-tar", "it is `application/x-tar`, a type of layer that piman does not know"),
        ("", "a type of layer that piman does not know"),
    ] {
        with_manifest(want, |_, mut manifest| {
            manifest["layers"][1]["mediaType"] = kind.into();
            manifest
        });
    }
    for bad in ["sha256:../../x", "sha256:../../../etc/passwd", "sha256:", "sha256:AB", "../oci-layout", ""] {
        with_manifest("is no digest", |_, mut manifest| {
            manifest["layers"][0]["digest"] = bad.into();
            manifest
        });
    }
    with_manifest("the only kind that piman can check", |_, mut manifest| {
        manifest["layers"][0]["digest"] = format!("sha512:{}", "0".repeat(128)).into();
        manifest
    });
    with_manifest("it has no layers", |_, manifest| with(manifest, "layers", json!([])));
    with_manifest("has no list of layers", |_, manifest| with(manifest, "layers", Value::Null));
    with_manifest("it has 1 layers, and its configuration names 2", |_, mut manifest| {
        manifest["layers"].as_array_mut().unwrap().pop();
        manifest
    });
    with_manifest("cannot be understood: missing field", |_, mut manifest| {
        manifest["layers"][0].as_object_mut().unwrap().remove("size");
        manifest
    });
    with_manifest(
        "no image of a system, but `application/vnd.cncf.helm.config.v1+json`",
        |_, mut manifest| {
            manifest["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into();
            manifest
        },
    );
    with_manifest("more than the 1024 that it may have", |_, mut manifest| {
        let layer = manifest["layers"][0].clone();
        manifest["layers"] = vec![layer; 1025].into();
        manifest
    });
    with_manifest("more than the 4 MiB that it may have", |_, manifest| {
        with(manifest, "padding", " ".repeat(4 << 20))
    });
}

#[test]
fn indexes_that_lead_nowhere() {
    refused("`index.json` cannot be understood", |layout| {
        fs::write(layout.0.join("index.json"), "hello").unwrap();
    });
    refused("`index.json` names no manifests", |layout| {
        fs::write(layout.0.join("index.json"), "{}").unwrap();
    });
    refused("`oci-layout` cannot be understood", |layout| {
        layout.index(&[layout.image("linux/arm64", &layers())]);
        fs::write(layout.0.join("oci-layout"), "[").unwrap();
    });
    refused("its layout has version `2.0.0`", |layout| {
        layout.index(&[layout.image("linux/arm64", &layers())]);
        fs::write(layout.0.join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    });
    refused("there is no image in it", |layout| layout.index(&[]));
    refused("is `application/vnd.docker.distribution.manifest.v1+prettyjws`, which is no image", |layout| {
        layout.index(&[layout.blob("application/vnd.docker.distribution.manifest.v1+prettyjws", b"{}")]);
    });
    refused("is no digest", |layout| {
        let image = layout.image("linux/arm64", &layers());
        layout.index(&[with(image, "digest", "sha256:../../index.json")]);
    });
    refused("cannot be understood", |layout| layout.index(&[layout.blob(MANIFEST, b"not JSON")]));
    // One that names itself cannot have the right digest, by any other it is not found.
    refused("its digest is", |layout| {
        let name = digest(b"loop");
        let inner = json!({"manifests": [{"mediaType": INDEX, "digest": name, "size": 200}]}).to_string();
        fs::write(layout.path(b"loop"), format!("{inner:200}")).unwrap();
        layout.index(&[json!({"mediaType": INDEX, "digest": name, "size": 200})]);
    });
    refused("its indexes are in each other more than 4 times", |layout| {
        let image = layout.image("linux/arm64", &layers());
        let deep = (0..6).fold(image, |inner, _| layout.json(INDEX, &json!({"manifests": [inner]})));
        layout.index(&[deep]);
    });
}

/// The same for what `docker save` writes.
#[track_caller]
fn saved(want: &str, change: impl FnOnce(&Path, Value) -> Value) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::create_dir_all(folder.join("image/layers")).unwrap();
    let layer = &layers()[0];
    fs::write(folder.join("image/layers/layer.tar"), &layer.stored).unwrap();
    let config = config("linux/arm64", std::slice::from_ref(layer)).to_string();
    let name = format!("{}.json", hex(config.as_bytes()));
    fs::write(folder.join("image").join(&name), config).unwrap();
    let manifest = json!([{"Config": name, "RepoTags": null, "Layers": ["layers/layer.tar"]}]);
    let manifest = change(&folder.join("image"), manifest);
    fs::write(folder.join("image/manifest.json"), manifest.to_string()).unwrap();
    script(folder, "tar -C image -cf image.tar .");
    for file in ["image", "image.tar"] {
        let (ok, text) = image(folder, &["add", "--force", "--name", "x", file], None);
        assert_eq!(ok, want.is_empty(), "{text}");
        assert!(text.contains(want) && copies(folder).len() == usize::from(ok), "{file}: {text}");
    }
}

#[test]
fn what_docker_saved() {
    saved("", |_, manifest| manifest);
    saved("it is missing", |folder, manifest| {
        fs::remove_file(folder.join("layers/layer.tar")).unwrap();
        manifest
    });
    saved("unpacked it should be", |folder, manifest| {
        let other = Layer::of(&[("other", "x")]).stored;
        fs::write(folder.join("layers/layer.tar"), other).unwrap();
        manifest
    });
    for bad in ["../image.tar", "/etc/passwd/../../x", ".."] {
        saved("is no name of a part of it", |_, mut manifest| {
            manifest[0]["Layers"][0] = bad.into();
            manifest
        });
    }
    saved("out of ", |folder, manifest| {
        fs::remove_file(folder.join("layers/layer.tar")).unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/passwd", folder.join("layers/layer.tar")).unwrap();
        manifest
    });
    saved("its configuration `gone.json` is missing", |_, mut manifest| {
        manifest[0]["Config"] = "gone.json".into();
        manifest
    });
    saved("is damaged: its digest is", |folder, mut manifest| {
        let name = format!("{}.json", hex(b"other"));
        let right = manifest[0]["Config"].as_str().unwrap().to_owned();
        fs::rename(folder.join(right), folder.join(&name)).unwrap();
        manifest[0]["Config"] = name.into();
        manifest
    });
    saved("it has no layers", |_, mut manifest| {
        manifest[0]["Layers"] = json!([]);
        manifest
    });
    saved("`manifest.json` cannot be understood", |_, _| json!({"Layers": 5}));
}

#[test]
fn parts_with_holes_are_in_no_piece() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let layout = Layout::new(&folder.join("image"));
    let mut tar = Tar::new();
    tar.file(b"zeros", &[0; 1 << 20]);
    layout.index(&[layout.image("linux/arm64", &[Layer::new(PLAIN, &tar.end())])]);
    script(folder, "find image -size +1M -exec fallocate -d {} + && tar -C image --sparse -cf image.tar .");
    let (ok, text) = image(folder, &["add", "--force", "--name", "x", "image.tar"], None);
    assert!(!ok && text.contains("is stored with holes") && text.contains("without --sparse"), "{text}");
    let (ok, text) = image(folder, &["add", "--force", "--name", "x", "image"], None);
    assert!(ok, "{text}");
}
