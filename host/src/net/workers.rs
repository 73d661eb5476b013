//! Threads for bulk transfers, each with connections of its own.
//!
//! A transfer is a chain of wake-ups, one for each buffer that the kernel has sent. On a runtime
//! whose threads share their work, one thread hears of them all and wakes the others for most; here
//! the thread that hears of it sends. The server's other work does not wait for transfers either.
//!
//! Each thread stays on one processor: wherever it went, what the kernel knows of its sockets would have to
//! follow from cache to cache, and readers would be woken across processors.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The threads. When this is dropped they end, and so do the connections that are left.
#[derive(Debug)]
pub struct WorkerPool(Vec<Lane>);

#[derive(Debug)]
struct Lane {
    handle: Handle,
    /// Connections on it.
    open: Arc<AtomicUsize>,
    /// Dropped to end it.
    going: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// One connection of a lane; dropped when it has ended, however it did.
struct Drain(Arc<AtomicUsize>);

impl WorkerPool {
    /// Starts `count` threads, one at least.
    ///
    /// # Errors
    /// The system refuses a thread or what a runtime needs.
    pub fn start(count: usize) -> io::Result<Self> {
        let mut processors = processors().into_iter().cycle();
        (0..count.max(1)).map(|_| Lane::start(processors.next())).collect::<io::Result<_>>().map(Self)
    }

    /// Has `serve` called with `stream` on the thread that has the fewest connections.
    pub fn run<S, F>(&self, stream: TcpStream, serve: S)
    where
        S: FnOnce(TcpStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let Some(lane) = self.0.iter().min_by_key(|lane| lane.open.load(Relaxed)) else { return };
        lane.open.fetch_add(1, Relaxed);
        let busy = Drain(Arc::clone(&lane.open));
        lane.handle.spawn(async move {
            // It leaves the runtime that accepted it for the one of this thread.
            match stream.into_std().and_then(TcpStream::from_std) {
                Ok(stream) => serve(stream).await,
                Err(e) => tracing::error!("a connection cannot be served: {e}"),
            }
            drop(busy);
        });
    }
}

/// The processors that this program may use.
fn processors() -> Vec<usize> {
    let allowed = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).filter(|n| allowed.is_set(*n)).collect()
}

impl Lane {
    fn start(processor: Option<usize>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (going, ended) = oneshot::channel();
        let thread = thread::Builder::new().name("transfer".to_owned()).spawn(move || {
            if let Some(n) = processor {
                let mut only = CpuSet::new();
                only.set(n);
                if let Err(e) = sched_setaffinity(None, &only) {
                    tracing::debug!("a thread for transfers does not stay on processor {n}: {e}");
                }
            }
            // It ends by the sender being dropped: nothing is ever sent.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { handle, open: Arc::default(), going: Some(going), thread: Some(thread) })
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        drop(self.going.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a thread for transfers had failed");
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn connections_are_spread_and_end_with_the_lanes() {
        let lanes = WorkerPool::start(2).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (told, mut where_served) = mpsc::unbounded_channel();
        let mut clients = Vec::new();
        for _ in 0..6 {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            let told = told.clone();
            lanes.run(listener.accept().await.unwrap().0, move |mut stream| async move {
                told.send(thread::current().id()).unwrap();
                stream.write_all(b"x").await.unwrap();
                std::future::pending::<()>().await;
            });
        }
        let mut by_thread = HashMap::new();
        for client in &mut clients {
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            *by_thread.entry(where_served.recv().await.unwrap()).or_insert(0) += 1;
        }
        assert_eq!(by_thread.into_values().collect::<Vec<_>>(), [3, 3]);
        drop(lanes);
        for mut client in clients {
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "it is closed");
        }
    }
}
