use std::net::{Ipv4Addr, TcpListener};

use super::*;

fn options(dir: &Path) -> Options {
    let archive = dir.join("root.tar.gz");
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
        File::create(&archive).unwrap(),
        flate2::Compression::fast(),
    ));
    tar.append_dir("etc", dir).unwrap();
    tar.into_inner().unwrap().finish().unwrap();
    Options {
        rootfs: Some(archive),
        state: Some(dir.join("state")),
        listen: Some(Ipv4Addr::LOCALHOST.into()),
        control_port: Some(0),
        rootfs_port: Some(0),
        fetch_port: Some(0),
        allow_unfit: Some(true),
        ..Options::default()
    }
}

#[track_caller]
fn says(checkup: &Checkup, health: Health, word: &str) {
    let found = checkup.0.iter().any(|(h, _, text)| *h == health && text.contains(word));
    assert!(found, "{word}: {}", checkup.describe());
}

#[test]
fn what_is_good_and_what_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let checkup = examine(options(dir.path()));
    says(&checkup, Health::Good, "1 entries");
    says(&checkup, Health::Warning, "no program can become process 1");
    let strict = examine(Options { allow_unfit: None, ..options(dir.path()) });
    says(&strict, Health::Bad, "no program can become process 1");
    assert!(strict.verdict().is_err());
    says(&checkup, Health::Warning, "--netboot");
    assert!(checkup.verdict().is_ok(), "{}", checkup.describe());

    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let checkup = examine(Options {
        control_port: Some(port),
        netboot: Some(dir.path().join("boot")),
        tftp_port: Some(0),
        ..options(dir.path())
    });
    says(&checkup, Health::Bad, "another program has port");
    says(&checkup, Health::Bad, "netboot build");
    assert!(checkup.verdict().is_err());

    // Every service that is asked for.
    let boot = dir.path().join("boot");
    fs::create_dir(&boot).unwrap();
    fs::write(boot.join("cmdline.txt"), "quiet piman.server=192.0.2.1:3333\n").unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let port = |listener: &TcpListener| Some(listener.local_addr().unwrap().port());
    let others = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let checkup = examine(Options {
        rpc_port: port(&others[0]),
        rpc_password_file: Some(dir.path().join("none")),
        transfer_dir: Some(dir.path().join("files")),
        transfer_port: port(&others[1]),
        telemetry_dir: Some(dir.path().join("file/under")),
        telemetry_port: port(&others[2]),
        netboot: Some(boot),
        tftp_port: Some(0),
        ..options(dir.path())
    });
    for flag in ["--rpc-port", "--transfer-port", "--telemetry-port", "the password in"] {
        says(&checkup, Health::Bad, flag);
    }
    let empty = dir.path().join("empty");
    fs::write(&empty, "\n").unwrap();
    let (rpc_port, rpc_password_file) = (Some(0), Some(empty));
    let no_password = Options { rpc_port, rpc_password_file, ..options(dir.path()) };
    says(&examine(no_password), Health::Bad, "empty is empty");
    says(&checkup, Health::Good, "files: writable (--transfer-dir)");
    says(&checkup, Health::Warning, "cmdline.txt sends Pis to 192.0.2.1");

    let cut = options(dir.path());
    let archive = cut.rootfs.clone().unwrap();
    let bytes = fs::read(&archive).unwrap();
    fs::write(&archive, &bytes[..bytes.len() / 2]).unwrap();
    says(&examine(cut), Health::Bad, "no whole archive");
    says(&examine(Options::default()), Health::Bad, "--rootfs");
}
