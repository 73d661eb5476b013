//! What a pipe brings is kept until it is read twice, and no longer, also if the command is killed.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use piman_tests::binaries;
use piman_tests::wait::until;

use super::{Layer, Layout};
use crate::forms::{copies, image, script};

#[test]
fn what_a_killed_command_left_is_removed_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let layout = Layout::new(&folder.join("image"));
    let mut noise = vec![0; 3_000_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let mut tar = piman_tests::tar::Tar::new();
    tar.file(b"noise", &noise);
    layout.index(&[layout.image("linux/arm64", &[Layer::new(super::PLAIN, &tar.end())])]);
    script(folder, "tar -C image -cf image.tar .");
    let bytes = fs::read(folder.join("image.tar")).unwrap();
    let mut command = Command::new(binaries::piman())
        .args(["image", "add", "--state", "state", "--name", "x", "--force", "-"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = command.stdin.take().unwrap();
    pipe.write_all(&bytes[..bytes.len() / 2]).unwrap();
    let kept = || {
        copies(folder).iter().any(|n| fs::metadata(folder.join("state/archives").join(n)).unwrap().len() > 0)
    };
    until("the pipe is kept", kept);
    command.kill().unwrap();
    command.wait().unwrap();
    assert_eq!(copies(folder).len(), 1);
    let (ok, text) = image(folder, &["add", "--force", "--name", "x", "-"], Some("image.tar"));
    assert!(ok && text.contains("it was a container image"), "{text}");
    let [copy] = &copies(folder)[..] else { panic!("{:?}", copies(folder)) };
    assert!(copy.ends_with(".tar.gz"), "{copy}");
}

#[test]
fn other_archives_out_of_pipes_are_what_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // Names as in images, and others; more of them than are looked at.
    script(
        folder,
        "mkdir -p a/blobs a/etc && echo x >a/index.json && echo '[]' >a/manifest.json && echo 1 >a/oci-layout
         for i in $(seq 100); do echo $i >a/etc/$i; done
         tar -C a --sort=name -cf a.tar . && tar -C a -cf few.tar ./manifest.json ./etc/1 ./blobs",
    );
    for name in ["a.tar", "few.tar"] {
        let id = |text: &str| text.split("; ").nth(1).unwrap()[..64].to_owned();
        let (ok, of_file) = image(folder, &["add", "--force", "--name", "x", name], None);
        assert!(ok && of_file.contains("it was tar;"), "{of_file}");
        let (ok, of_pipe) = image(folder, &["add", "--force", "--name", "x", "-"], Some(name));
        assert!(ok && of_pipe.contains("it was tar;"), "{of_pipe}");
        assert_eq!(id(&of_file), id(&of_pipe));
    }
}
