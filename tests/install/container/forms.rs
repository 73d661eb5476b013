//! The same image in every form that is taken is the same on the card, and what root makes of the layers by hand.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use pi_agent::install::Outcome;
use piman_core::install::layout::SECTOR;
use piman_tests::binaries;
use piman_tests::disk::Mounted;
use piman_tests::lab::{self, attempt};
use piman_tests::server::Server;
use piman_tests::tree::{Tree, assert_same, differences, installed, tree};
use serde_json::json;

use super::{DOCKER_GZIP, GZIP, INDEX, Layer, Layout, MANIFEST, PLAIN, ZSTD, hex, platform, with};
use crate::forms::{copies, image, script};

/// Layers `1.tar` to `5.tar`, and in `hand` what they become: root removes what whiteouts name, and unpacks the rest.
const LAYERS: &str = r#"
umask 022
long=$(printf 'n%.0s' $(seq 150))
mkdir -p 1/{etc/dir,bin,dev,opq/old,hidden/deep,usr/lib,d2f/x,d2l/x,var} 2 3 4
echo a >1/etc/a; echo b >1/etc/b; echo x >1/etc/dir/x; echo f >1/f2d; echo z >1/usr/lib/z; echo o >1/opq/old/o
echo h >1/hidden/deep/h; echo kept >1/hidden/kept; echo "$long" >1/var/$long; ln -s ../var/$long 1/etc/$long
head -c 400000 /dev/urandom >1/bin/noise; ln 1/bin/noise 1/bin/again; chown 12:34 1/bin/noise; chmod 4755 1/bin/noise
mknod 1/dev/null c 1 3; mknod 1/dev/loop b 7 9; mkfifo 1/var/pipe; chmod 1777 1/var; chown 4000000:5 1/etc/b
ln -s usr/lib 1/lib; ln -s usr 1/s2d; ln -s /nowhere 1/etc/dangling; touch -h -d '2001-02-03 04:05:06.123456789' 1/etc/dangling
setfattr -n user.colour -v 'red=%1' 1/etc/a; setfattr -n user.dir -v d 1/etc/dir; setfattr -n trusted.t -v $'\x00' 1/etc/a
setcap cap_net_raw+ep 1/etc/dir/x
truncate -s 3M 1/var/holes; printf data | dd of=1/var/holes bs=1 seek=1500000 conv=notrunc status=none
truncate -s 1M 1/var/hole
touch -d '1960-01-01 00:00:00.5' 1/etc/dir/x; touch -d '2020-01-01 00:00:00.25' 1/etc 1/etc/dir 1/var
pack="tar --format=pax --xattrs --xattrs-include=* --sparse --sort=name"
$pack -C 1 -cf 1.tar .

mkdir -p 2/{etc,opq,f2d,s2d,same}; echo new >2/opq/new; : >2/opq/.wh..wh..opq; : >2/.wh.hidden; : >2/etc/.wh.a
echo g >2/f2d/g; echo file >2/d2f; ln -s etc 2/d2l; echo s >2/s2d/s; echo same >2/same/file; : >2/same/.wh.file
chmod 700 2/etc; chown 3:4 2/etc; ln -s /etc/passwd 2/etc/out; touch -d '2021-01-01' 2/etc; setfattr -n user.more -v m 2/etc
$pack -C 2 -cf 2.tar .

# Hard links to files of the layers below, without these; and a file by way of a link.
mkdir -p 3/{bin,hidden,etc}; echo again >3/etc/a; ln 1/bin/noise 3/bin/noise; ln 3/bin/noise 3/bin/third
$pack -C 3 -cf 3.tar ./bin/noise ./bin/third ./etc/a; tar --delete -f 3.tar ./bin/noise
mkdir -p t/lib; echo added >t/lib/added; tar -C t -rf 3.tar ./lib/added

mkdir 4/bin; : >4/bin/.wh.noise; touch -d '2022-02-02' 4/bin; : >4/bin/.wh.nothing
$pack -C 4 -cf 4.tar ./bin
tar -cf 5.tar -T /dev/null

mkdir hand
apply() { tar --xattrs --xattrs-include='*' --exclude='.wh.*' --numeric-owner -C hand -xpf $1.tar; }
apply 1
(cd hand && rm -r hidden etc/a opq/* d2f d2l f2d s2d)
apply 2; apply 3
# That there is something new in it the third layer does not say.
touch -d '2021-01-01' hand/etc
rm hand/bin/noise
apply 4; apply 5
"#;

/// The layers' numbers and how each is packed.
fn layers(folder: &Path) -> Vec<Layer> {
    let kinds = [GZIP, PLAIN, ZSTD, DOCKER_GZIP, GZIP];
    let tar = |number| fs::read(folder.join(format!("{number}.tar"))).unwrap();
    (1..).zip(kinds).map(|(number, kind)| Layer::new(kind, &tar(number))).collect()
}

/// The folder `oci`: an index in the index, with more than the one image.
fn oci(folder: &Path, layers: &[Layer]) {
    let oci = folder.join("oci");
    let layout = Layout::new(&oci);
    let one = |of: &str, layers: &[Layer]| with(layout.image(of, layers), "platform", platform(of));
    let amd64 = one("linux/amd64", &[Layer::of(&[("amd64", "x")])]);
    let arm64 = one("linux/arm64/v8", layers);
    let about = with(
        with(layout.json(MANIFEST, &json!({"layers": []})), "platform", platform("unknown/unknown")),
        "annotations",
        json!({"vnd.docker.reference.type": "attestation-manifest"}),
    );
    let inner = layout.json(INDEX, &json!({"schemaVersion": 2, "manifests": [amd64, about, arm64]}));
    layout.index(&[inner]);
}

/// The folder `saved`: as `docker save` wrote it before it knew OCI.
fn saved(folder: &Path, layers: &[Layer]) {
    let saved = folder.join("saved");
    let config = super::config("linux/arm64", layers).to_string();
    let name = format!("{}.json", hex(config.as_bytes()));
    let mut names = Vec::new();
    for number in 1..=layers.len() {
        let own = hex(&[number as u8]);
        fs::create_dir_all(saved.join(&own)).unwrap();
        fs::copy(folder.join(format!("{number}.tar")), saved.join(&own).join("layer.tar")).unwrap();
        fs::write(saved.join(&own).join("VERSION"), "1.0").unwrap();
        names.push(format!("{own}/layer.tar"));
    }
    // The last one is a link to another, as for layers that occur twice.
    let other = hex(b"other");
    fs::create_dir_all(saved.join(&other)).unwrap();
    let last = names.pop().unwrap();
    std::os::unix::fs::symlink(format!("../{last}"), saved.join(&other).join("layer.tar")).unwrap();
    names.push(format!("{other}/layer.tar"));
    fs::write(saved.join(&name), config).unwrap();
    fs::write(saved.join("repositories"), "{}").unwrap();
    let manifest = json!([{"Config": name, "RepoTags": ["lab:1", "lab:latest"], "Layers": names}]);
    fs::write(saved.join("manifest.json"), manifest.to_string()).unwrap();
}

/// What no layer describes is made as it comes; the root is the folder of the test.
fn comparable(mut tree: Tree) -> Tree {
    for name in ["", "usr/lib"] {
        tree.get_mut(name.as_bytes()).unwrap().mtime = (0, 0);
    }
    tree
}

#[test]
#[cfg_attr(lacks = "root", ignore = "needs root")]
fn an_image_becomes_what_root_makes_of_its_layers() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    script(folder, LAYERS);
    let layers = layers(folder);
    oci(folder, &layers);
    saved(folder, &layers);
    script(
        folder,
        "tar -C oci -cf oci.tar . && tar -C saved --sort=name -cf called.tgz $(ls saved)
         gzip -c oci.tar >oci.img && xz -c called.tgz >saved.xz && zstd -q called.tgz -o saved.zst",
    );
    let (of_oci, of_saved) =
        ("(OCI), for linux/arm64/v8, 5 layers", "(docker save), lab:1 for linux/arm64, 5 layers");
    let mut ids = Vec::new();
    for (file, stdin, what) in [
        ("oci", None, of_oci),
        ("oci.tar", None, of_oci),
        ("oci.img", None, of_oci),
        ("-", Some("oci.tar"), of_oci),
        ("-", Some("oci.img"), of_oci),
        ("saved", None, of_saved),
        ("called.tgz", None, of_saved),
        ("saved.xz", None, of_saved),
        ("-", Some("saved.xz"), of_saved),
        ("-", Some("saved.zst"), of_saved),
    ] {
        let (ok, text) = image(folder, &["add", "--force", "--name", "lab", file], stdin);
        assert!(
            ok && text.contains(&format!("it was a container image {what};")),
            "{file} {stdin:?}: {text}"
        );
        assert_eq!(copies(folder).len(), 1, "{:?}", copies(folder));
        ids.push(text.split("; ").nth(1).unwrap()[..64].to_owned());
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    script(
        folder,
        "mkdir tar && tar --xattrs --xattrs-include='*' --numeric-owner -C tar -xpf state/archives/lab-*.tar.gz",
    );
    let (ours, hand) = (folder.join("tar"), folder.join("hand"));
    let of = |path: &Path| comparable(tree(path, true).unwrap());
    let difference = differences(&of(&ours), &of(&hand));
    assert!(difference.is_empty(), "{difference}");
    assert!(
        hand.join("bin/third").exists()
            && !hand.join("bin/noise").exists()
            && hand.join("usr/lib/added").exists()
    );
    on_cards(folder, &comparable(installed(&hand)));
}

/// Installs it by both paths.
fn on_cards(folder: &Path, want: &Tree) {
    let mut serve = Command::new(binaries::piman());
    let state = folder.join("state");
    serve
        .args(["serve", "--listen", "127.0.0.1", "--policy", "foreign=install", "--state"])
        .arg(&state)
        .args(["--control-port", "0", "--rootfs-port", "0", "--fetch-port", "0"]);
    let server = Server::start_by(&mut serve, &state);
    server.wait_log("is good");
    let cards = lab::memory();
    let card = cards.path().join("card.img");
    for path in ["archive", "image"] {
        File::create(&card).unwrap().set_len(lab::CARD).unwrap();
        let outcome = attempt(&lab::plan(&server, &card, path)).unwrap();
        assert!(matches!(outcome, Outcome::Installed { .. }), "{path}: {outcome:?}");
        let start = lab::layout().root_start * SECTOR;
        let mounted = Mounted::new(&card, start, lab::CARD - start, "noatime");
        assert_same(&comparable(installed(mounted.path())), want);
    }
}
