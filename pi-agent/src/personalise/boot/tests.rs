use super::*;
use std::os::unix::fs::symlink;

#[test]
fn what_is_copied_is_what_the_firmware_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    assert!(source(root).is_err());
    fs::create_dir_all(root.join("boot/firmware")).unwrap();
    fs::create_dir_all(root.join("usr/lib/deep")).unwrap();
    fs::write(root.join("usr/lib/deep/dtb"), "dtb").unwrap();
    // The newer folder is empty: it is where the older one is mounted, or nothing.
    let (inside, folder) = source(root).unwrap();
    assert_eq!((inside, folder.as_path()), ("/boot", root.join("boot").as_path()));
    fs::write(root.join("boot/firmware/config.txt"), "").unwrap();
    let (inside, folder) = source(root).unwrap();
    assert_eq!(inside, "/boot/firmware");
    symlink("/usr/lib", folder.join("lib")).unwrap();
    symlink("/nowhere", folder.join("gone")).unwrap();
    let mut entries = Vec::new();
    list(root, &folder, "", DEPTH_MAX, &mut entries).unwrap();
    let mut paths: Vec<(&str, Option<u64>)> =
        entries.iter().map(|(_, path, n)| (path.as_str(), *n)).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [("/config.txt", Some(0)), ("/lib", None), ("/lib/deep", None), ("/lib/deep/dtb", Some(3))]
    );
    symlink("..", folder.join("up")).unwrap();
    assert!(list(root, &folder, "", DEPTH_MAX, &mut Vec::new()).unwrap_err().to_string().contains("ring"));
}
