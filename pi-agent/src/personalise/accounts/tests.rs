use super::*;
use std::os::unix::fs::PermissionsExt;

const PASSWD_TEXT: &str =
    "root:x:0:0:root:/root:/bin/bash\n# people\nold:x:1000:1000:,,,:/home/old:/bin/bash\n";
const SHADOW_TEXT: &str = "root:*:19000:0:99999:7:::\nold:$y$hash:19000:0:99999:7:::\n";
const GROUP_TEXT: &str = "root:x:0:\nsudo:x:27:old\ngpio:x:997:\nold:x:1000:\nbusy:x:1001:\n";

fn card() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("etc/passwd", PASSWD_TEXT);
    put("etc/shadow", SHADOW_TEXT);
    put("etc/group", GROUP_TEXT);
    put("etc/gshadow", "root:*::\nsudo:*::old\n");
    put("etc/subuid", "old:100000:65536\n");
    put("etc/skel/.bashrc", "# rc\n");
    put("etc/skel/deep/er", "x");
    symlink("/etc/motd", dir.path().join("etc/skel/link")).unwrap();
    put("bin/bash", "");
    put("bin/sh", "");
    fs::set_permissions(dir.path().join("etc/shadow"), fs::Permissions::from_mode(0o640)).unwrap();
    dir
}

fn text(dir: &Path, path: &str) -> String {
    fs::read_to_string(dir.join(path)).unwrap()
}

fn mine() -> bool {
    rustix::process::geteuid().is_root()
}

const KEYS: &str = "ssh-ed25519 AAAA one\n\nssh-ed25519 BBBB two\n";

fn ada() -> User<'static> {
    User {
        name: "ada",
        password: "$y$ada",
        groups: "sudo,gpio,none",
        full_name: "Ada L.",
        keys: KEYS,
        ..User::default()
    }
}

#[test]
fn a_new_account_is_whole_and_made_once() {
    if !mine() {
        return println!("only root gives files away");
    }
    let dir = card();
    let root = dir.path();
    for round in 0..3 {
        put(root, &ada()).unwrap();
        let passwd = text(root, "etc/passwd");
        // 1001 is the number of a group of somebody else's.
        assert_eq!(passwd, format!("{PASSWD_TEXT}ada:x:1002:1002:Ada L.:/home/ada:/bin/bash\n"));
        let shadow = text(root, "etc/shadow");
        assert!(shadow.starts_with(SHADOW_TEXT) && shadow.lines().count() == 3, "{shadow}");
        assert!(shadow.contains("\nada:$y$ada:2") && shadow.ends_with(":0:99999:7:::\n"), "{shadow}");
        assert_eq!(fs::metadata(root.join("etc/shadow")).unwrap().mode() & 0o777, 0o640);
        let group = text(root, "etc/group");
        assert!(
            group.contains("sudo:x:27:old,ada\ngpio:x:997:ada\n") && group.ends_with("ada:x:1002:\n"),
            "{group}"
        );
        assert_eq!(text(root, "etc/gshadow"), "root:*::\nsudo:*::old,ada\nada:!::\n");
        assert_eq!(text(root, "etc/subuid"), "old:100000:65536\nada:165536:65536\n");
        let owned = |path: &str| {
            let meta = fs::symlink_metadata(root.join(path)).unwrap();
            (meta.mode() & 0o777, meta.uid(), meta.gid())
        };
        assert_eq!(owned("home/ada"), (0o700, 1002, 1002));
        assert_eq!(owned("home/ada/.ssh"), (0o700, 1002, 1002));
        assert_eq!(owned("home/ada/.ssh/authorized_keys"), (0o600, 1002, 1002));
        assert_eq!((owned("home/ada/deep/er").1, owned("home/ada/link").1), (1002, 1002));
        assert_eq!(text(root, "home/ada/.ssh/authorized_keys"), KEYS.replace("\n\n", "\n"), "{round}");
    }
    assert_eq!(owner(Some(root), "ada:sudo").unwrap(), (1002, 27));
    assert_eq!(owner(None, "5:6").unwrap(), (5, 6));
    assert!(owner(Some(root), "none:0").is_err() && owner(None, "ada:0").is_err());
    // One that has the same number, and a shell that there is not.
    let taken = User { name: "bob", id: 1002, ..User::default() };
    assert!(put(root, &taken).unwrap_err().to_string().contains("another account's"));
    let shell = User { name: "bob", shell: "/bin/zsh", ..User::default() };
    assert!(put(root, &shell).unwrap_err().to_string().contains("no shell"));
    assert!(!text(root, "etc/passwd").contains("bob"));
}

#[test]
fn a_home_that_was_broken_off_is_made_whole() {
    if !mine() {
        return println!("only root gives files away");
    }
    let dir = card();
    let root = dir.path();
    let large = root.join("etc/skel/large");
    File::create(&large).unwrap().set_len(SKELETON_FILE_MAX + 1).unwrap();
    assert!(put(root, &ada()).is_err());
    assert!(text(root, "etc/passwd").contains("ada:"), "the account is there already");
    assert!(!root.join("home/ada").exists(), "and no half of a home");
    fs::write(&large, "small").unwrap();
    put(root, &ada()).unwrap();
    for path in ["home/ada", "home/ada/large", "home/ada/deep", "home/ada/deep/er", "home/ada/.bashrc"] {
        assert_eq!(fs::metadata(root.join(path)).unwrap().uid(), 1002, "{path}");
    }
    assert_eq!(fs::metadata(root.join("home/ada")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(text(root, "home/ada/large"), "small");
    assert_eq!(fs::read_dir(root.join("home")).unwrap().count(), 1, "nothing else is left");
}

#[test]
fn an_account_that_is_there_is_changed() {
    if !mine() {
        return println!("only root gives files away");
    }
    let dir = card();
    let root = dir.path();
    let old = User { name: "old", id: 5, groups: "gpio", shell: "/bin/sh", ..User::default() };
    put(root, &User { keeps_password: true, password: "$new", ..old }).unwrap();
    assert!(text(root, "etc/passwd").contains("old:x:1000:1000:,,,:/home/old:/bin/sh\n"));
    assert_eq!(text(root, "etc/shadow"), SHADOW_TEXT);
    put(root, &User { password: "$new", ..old }).unwrap();
    assert!(text(root, "etc/shadow").contains("\nold:$new:2"));
    put(root, &User { locked: true, password: "$new", ..old }).unwrap();
    assert!(text(root, "etc/shadow").contains("\nold:*:2"));
    // A link in a home is not followed.
    fs::remove_dir_all(root.join("home/old")).unwrap();
    fs::create_dir_all(root.join("home/old")).unwrap();
    symlink("/etc", root.join("home/old/.ssh")).unwrap();
    assert!(put(root, &User { keys: KEYS, ..old }).is_err());
    assert!(!root.join("etc/authorized_keys").exists());
}

#[test]
fn any_bytes_may_be_in_the_files() {
    if !mine() {
        return println!("only root gives files away");
    }
    for garbage in [&b""[..], b"\xff\xfe\n:\n::::\n\n+::::::\n", b"x:", &[b':'; 5000], b"ada:x\n", b"\0\0\0"]
    {
        let dir = card();
        for file in ["passwd", "shadow", "group", "gshadow", "subuid"] {
            fs::write(dir.path().join("etc").join(file), garbage).unwrap();
        }
        let done = put(dir.path(), &ada());
        let damaged = garbage == b"ada:x\n";
        assert_eq!(done.is_err(), damaged, "{garbage:?}: {done:?}");
        if !damaged {
            let passwd = fs::read(dir.path().join("etc/passwd")).unwrap();
            assert!(passwd.ends_with(b"ada:x:1000:1000:Ada L.:/home/ada:/bin/bash\n"));
        }
    }
    let dir = card();
    fs::remove_file(dir.path().join("etc/passwd")).unwrap();
    assert!(put(dir.path(), &ada()).is_err());
    symlink("passwd", dir.path().join("etc/passwd")).unwrap();
    assert!(put(dir.path(), &ada()).is_err());
}
