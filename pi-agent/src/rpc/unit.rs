//! The service in a system that was just installed: the agent's program, a unit of systemd, and the
//! password, each whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::card::root_files::{self, Access};
use crate::card::root_path::resolve;

/// The unit's name.
pub const UNIT: &str = "piman-agent.service";
/// Where the program goes.
pub const PROGRAM: &str = "/usr/local/sbin/pi-agent";
/// Where the password is in an installed system: `--password-file` or a profile's file puts it there.
pub const PASSWORD: &str = "/etc/piman/password";

/// What the installed service is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrol {
    /// Where the server is.
    pub host: String,
    /// On which port it takes calls.
    pub port: u16,
    /// The password that it wants, if any.
    pub password_file: Option<PathBuf>,
}

impl Enrol {
    /// Whether it can be put into a system at all.
    ///
    /// # Errors
    /// If the server's name cannot stand in a unit, or the password cannot be read.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.host.is_empty()
                && self.host.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\%$".contains(&b)),
            "{:?} cannot be the name of a server in a unit",
            self.host
        );
        self.password().map(drop)
    }

    fn password(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let read = |file: &PathBuf| fs::read(file).with_context(|| format!("reading {}", file.display()));
        self.password_file.as_ref().map(read).transpose()
    }

    /// Puts the service into the system at `root` and enables it. What is there and right is left as it
    /// is, so that it can be done at every boot.
    ///
    /// # Errors
    /// If the system has no systemd, or something cannot be read or written.
    pub fn put(&self, root: &Path) -> anyhow::Result<()> {
        let has = |path: &str| resolve(root, Path::new(path)).is_ok();
        ensure!(
            has("/lib/systemd/systemd") || has("/usr/lib/systemd/systemd"),
            "the installed system has no systemd, which would start the service"
        );
        self.check()?;
        let mut program = Vec::new();
        File::open("/proc/self/exe")
            .and_then(|mut f| f.read_to_end(&mut program))
            .context("reading this program")?;
        put(root, PROGRAM, 0o755, &program)?;
        if let Some(password) = self.password()? {
            put(root, PASSWORD, 0o600, &password)?;
        }
        put(root, &format!("/etc/systemd/system/{UNIT}"), 0o644, self.unit(has(PASSWORD)).as_bytes())?;
        let wants = root_files::folder(root, Path::new("/etc/systemd/system/multi-user.target.wants"))?;
        let link = wants.join(UNIT);
        match symlink(format!("/etc/systemd/system/{UNIT}"), &link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                Err(e).with_context(|| format!("making {}", link.display()))
            }
            _ => Ok(()),
        }
    }

    fn unit(&self, has_password: bool) -> String {
        let password = if has_password { format!(" --password-file {PASSWORD}") } else { String::new() };
        format!(
            "[Unit]\n\
             Description=piman's agent: does what piman call asks\n\
             Wants=network-online.target\n\
             After=network-online.target\n\
             \n\
             [Service]\n\
             ExecStart={PROGRAM} run --server {} --port {}{password}\n\
             Restart=always\n\
             RestartSec=5\n\
             \n\
             [Install]\n\
             WantedBy=multi-user.target\n",
            self.host, self.port
        )
    }
}

/// Writes a file of the system at `root`, unless it is there and the same.
fn put(root: &Path, path: &str, mode: u32, bytes: &[u8]) -> anyhow::Result<()> {
    let write = || root_files::write(&root_files::place(root, Path::new(path))?, Access::own(mode), bytes);
    write().with_context(|| format!("writing {path} of the installed system"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_put_where_the_system_itself_would_find_it_and_again_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for folder in ["usr/lib/systemd", "opt/local", "etc/systemd"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        fs::write(root.join("usr/lib/systemd/systemd"), "").unwrap();
        symlink("usr/lib", root.join("lib")).unwrap();
        // An absolute link means a place inside.
        symlink("/opt/local", root.join("usr/local")).unwrap();
        let password_file = dir.path().join("password");
        fs::write(&password_file, "open sesame\n").unwrap();
        let enrol = Enrol { host: "10.0.0.1".into(), port: 25565, password_file: Some(password_file) };
        for _ in 0..2 {
            enrol.put(&root).unwrap();
            let mode = |path: &str| fs::metadata(root.join(path)).unwrap().permissions().mode() & 0o7777;
            assert_eq!((mode("opt/local/sbin/pi-agent"), mode("etc/piman/password")), (0o755, 0o600));
            let unit = fs::read_to_string(root.join("etc/systemd/system").join(UNIT)).unwrap();
            assert!(
                unit.contains("run --server 10.0.0.1 --port 25565 --password-file /etc/piman/password\n")
            );
            let link = fs::read_link(root.join("etc/systemd/system/multi-user.target.wants").join(UNIT));
            assert_eq!(link.unwrap(), Path::new("/etc/systemd/system").join(UNIT));
        }
        let other = Enrol { port: 7, password_file: None, ..enrol.clone() };
        other.put(&root).unwrap();
        let unit = fs::read_to_string(root.join("etc/systemd/system").join(UNIT)).unwrap();
        assert!(
            unit.contains("--port 7 --password-file /etc/piman/password\n"),
            "a profile may put it there: {unit}"
        );
        fs::remove_file(root.join("etc/piman/password")).unwrap();
        other.put(&root).unwrap();
        let unit = fs::read_to_string(root.join("etc/systemd/system").join(UNIT)).unwrap();
        assert!(unit.contains("--port 7\n"), "{unit}");
        let bad = Enrol { host: "a b".into(), ..enrol.clone() };
        assert!(bad.put(&root).is_err());
        assert!(enrol.put(dir.path()).unwrap_err().to_string().contains("systemd"));
    }
}
