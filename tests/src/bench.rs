//! What the benchmarks share: figures of processes, and nginx to compare with.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::disk::run;
use crate::running::memory_kb;

/// Many connections are many open files.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, that is said when there are no more.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Seconds of processors that these processes have used.
#[must_use]
pub fn cpu(pids: &[u32]) -> f64 {
    let ticks = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<u64> =
            stat.rsplit_once(')')?.1.split_whitespace().filter_map(|f| f.parse().ok()).collect();
        // After the name and the state, which is no number: fields 14 and 15 of the manual.
        Some(fields.get(10)? + fields.get(11)?)
    };
    pids.iter().filter_map(ticks).sum::<u64>() as f64 / 100.0
}

/// Resident memory, in KB.
#[must_use]
pub fn memory(pid: u32) -> Option<f64> {
    memory_kb(pid, "VmRSS").map(|kb| kb as f64)
}

/// The middle one.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Reads to the end, and has the kernel throw it away: the client should cost little. How many bytes.
///
/// # Panics
/// If the connection fails.
#[must_use]
pub fn drain(stream: &TcpStream) -> u64 {
    let mut buf = vec![0; 1 << 20];
    let mut sum = 0;
    loop {
        match rustix::net::recv(stream, &mut buf[..], RecvFlags::TRUNC) {
            Ok((_, 0)) => return sum,
            Ok((_, n)) => sum += n as u64,
            Err(e) => panic!("after {sum} bytes: {e}"),
        }
    }
}

/// nginx with a configuration of its own; ended when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    /// Where it listens.
    pub port: u16,
}

impl Nginx {
    /// Serves the folder `root`, with sendfile and two workers, and takes files by PUT; its own files
    /// go to `work`. `None` where it is not installed.
    ///
    /// # Panics
    /// If it does not listen.
    #[must_use]
    pub fn start(root: &Path, work: &Path) -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).ok()?.port();
        let (root_name, work_name) = (root.display(), work.display());
        let config = work.join("nginx.conf");
        let text = format!(
            "daemon off; worker_processes 2; user root; pid {work_name}/nginx.pid; error_log {work_name}/nginx.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; sendfile_max_chunk 2m; client_max_body_size 0;\n\
             client_body_temp_path {root_name}/.nginx-body; server {{ listen 127.0.0.1:{port}; root {root_name};\n\
             dav_methods PUT; }} }}\n"
        );
        fs::write(&config, text).ok()?;
        // Its workers may be another user than root.
        run(Command::new("chmod").args(["a+rx"]).args([root, work]));
        let program = ["nginx", "/usr/sbin/nginx"]
            .into_iter()
            .find(|p| Command::new(p).arg("-v").stderr(Stdio::null()).status().is_ok_and(|s| s.success()));
        let Some(program) = program else {
            println!("nginx is not installed: left out");
            return None;
        };
        let mut nginx = Command::new(program);
        let child = nginx.arg("-c").arg(&config).arg("-e").arg(work.join("nginx.log")).spawn().ok()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "nginx does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(Self { child, port })
    }

    /// Its main process and its workers.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let id = self.child.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        [id].into_iter().chain(children.split_whitespace().filter_map(|c| c.parse().ok())).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its main process ends the workers when asked to.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
