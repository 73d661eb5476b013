//! The messages service over TCP: servers and clients of ours, and the old libraries' way to talk.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use piman::messages::transport::{
    ConnectError, Failure, Hooks, NotSent, Peer, Plan, Server, Settings, connect,
};
use piman::net::tcp::Info;
use piman_core::messages::{FULL, GO, Plugin, PluginError, TOO_LARGE};
use piman_tests::server::wait_until;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// No test waits longer for anything.
const DEADLINE: Duration = Duration::from_secs(120);

struct Echo;

impl Hooks for Echo {
    fn message(&mut self, peer: &Peer, message: Vec<u8>) {
        peer.queue(message).unwrap();
    }
}

/// Hands on what comes.
struct Forward(mpsc::UnboundedSender<Vec<u8>>);

impl Hooks for Forward {
    fn message(&mut self, _peer: &Peer, message: Vec<u8>) {
        // The test may be over.
        let _ = self.0.send(message);
    }
}

fn forward() -> (Forward, mpsc::UnboundedReceiver<Vec<u8>>) {
    let (to, from) = mpsc::unbounded_channel();
    (Forward(to), from)
}

fn plan<M>(addresses: &[&str], connections: usize, hooks: M) -> Plan<M> {
    let settings = Settings { limit: 3 << 20, ..Settings::default() };
    let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
    Plan { addresses, connections, settings, plugins: None, hooks }
}

async fn next(from: &mut mpsc::UnboundedReceiver<Vec<u8>>) -> Vec<u8> {
    timeout(DEADLINE, from.recv()).await.expect("nothing came").expect("the connection is closed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn echo_on_several_addresses_and_sizes() {
    let server = Server::start(plan(&["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"], 10, || Echo)).unwrap();
    assert_eq!(server.addresses().len(), 3);
    for address in server.addresses() {
        let (hooks, mut echoes) = forward();
        let peer = connect(*address, DEADLINE, Settings::default(), None, hooks).await.unwrap();
        for size in [0, 1, 8191, 8192, 8193, 3 << 20] {
            let message: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            peer.send(message.clone()).await.unwrap();
            assert!(next(&mut echoes).await == message, "{size}");
        }
        assert_eq!(peer.send(vec![0; (3 << 20) + 1]).await, Err(NotSent::Rejected(TOO_LARGE)));
        peer.send(&b"still here"[..]).await.unwrap();
        assert_eq!(next(&mut echoes).await, b"still here");
        peer.close();
        timeout(DEADLINE, peer.closed()).await.unwrap();
        assert_eq!(peer.send(&b"x"[..]).await, Err(NotSent::Closed));
    }
    assert_eq!(server.stop(DEADLINE).await, 0);
}

/// Sends as fast as it can, in both directions at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_talk_without_pause() {
    struct Chatter(Arc<Mutex<usize>>);
    impl Hooks for Chatter {
        fn start(&mut self, peer: &Peer) {
            let peer = peer.clone();
            tokio::spawn(async move {
                for i in 0..2000_u32 {
                    peer.send(vec![i as u8; (i % 3000) as usize]).await.unwrap();
                }
            });
        }
        fn message(&mut self, _peer: &Peer, message: Vec<u8>) {
            let mut count = self.0.lock().unwrap();
            assert_eq!(message, vec![*count as u8; *count % 3000]);
            *count += 1;
        }
    }
    let came = Arc::new(Mutex::new(0));
    let server = Server::start(plan(&["127.0.0.1:0"], 1, {
        let came = Arc::clone(&came);
        move || Chatter(Arc::clone(&came))
    }))
    .unwrap();
    let (hooks, mut from) = forward();
    let peer = connect(server.addresses()[0], DEADLINE, Settings::default(), None, hooks).await.unwrap();
    for i in 0..2000_u32 {
        peer.send(vec![i as u8; (i % 3000) as usize]).await.unwrap();
    }
    for i in 0..2000_u32 {
        assert_eq!(next(&mut from).await, vec![i as u8; (i % 3000) as usize]);
    }
    peer.close();
    assert_eq!(server.stop(DEADLINE).await, 0);
    assert_eq!(*came.lock().unwrap(), 2000);
}

/// A plugin that compresses.
struct Compress;

impl Plugin for Compress {
    fn outgoing(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
        zstd::bulk::compress_to_buffer(message, to, 1).map_err(|_| PluginError::NoRoom)
    }

    fn incoming(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
        let size = zstd::zstd_safe::get_frame_content_size(message).map_err(|_| PluginError::Malformed)?;
        if size.is_none_or(|s| s > to.len() as u64) {
            return Err(if size.is_some() { PluginError::NoRoom } else { PluginError::Malformed });
        }
        zstd::bulk::decompress_to_buffer(message, to).map_err(|_| PluginError::Malformed)
    }
}

/// A plugin that must be undone after, or before, the other.
struct Invert;

impl Plugin for Invert {
    fn outgoing(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
        let to = to.get_mut(..message.len()).ok_or(PluginError::NoRoom)?;
        to.iter_mut().zip(message).for_each(|(to, from)| *to = !from);
        Ok(message.len())
    }

    fn incoming(&mut self, message: &[u8], to: &mut [u8]) -> Result<usize, PluginError> {
        self.outgoing(message, to)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_on_both_sides() {
    let plugins = || -> Vec<Box<dyn Plugin + Send>> { vec![Box::new(Compress), Box::new(Invert)] };
    let mut plan = plan(&["127.0.0.1:0"], 10, || Echo);
    plan.plugins = Some(Box::new(plugins));
    let server = Server::start(plan).unwrap();
    let (hooks, mut echoes) = forward();
    let peer =
        connect(server.addresses()[0], DEADLINE, Settings::default(), Some(&plugins), hooks).await.unwrap();
    for message in [vec![], b"short".to_vec(), vec![7; 3 << 20]] {
        peer.send(message.clone()).await.unwrap();
        assert!(next(&mut echoes).await == message);
    }
    // Without the plugins it is a message that nobody understands: dropped, and the talk goes on. What
    // unfolds to more than the limit is dropped too.
    let (hooks, mut echoes) = forward();
    let plain = connect(server.addresses()[0], DEADLINE, Settings::default(), None, hooks).await.unwrap();
    plain.send(&b"plain"[..]).await.unwrap();
    let bomb: Vec<u8> = zstd::bulk::compress(&vec![0; 50 << 20], 1).unwrap().iter().map(|b| !b).collect();
    plain.send(bomb).await.unwrap();
    let packed: Vec<u8> = zstd::bulk::compress(b"packed", 1).unwrap().iter().map(|b| !b).collect();
    plain.send(packed.clone()).await.unwrap();
    assert_eq!(next(&mut echoes).await, packed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_too_many_is_refused_and_may_come_later() {
    let server = Server::start(plan(&["127.0.0.1:0"], 2, || Echo)).unwrap();
    let address = server.addresses()[0];
    let join = || async { connect(address, DEADLINE, Settings::default(), None, forward().0).await };
    let (first, _second) = (join().await.unwrap(), join().await.unwrap());
    match join().await {
        Err(ConnectError::Greeting { source: Failure::Refused(FULL), .. }) => {}
        other => panic!("{other:?}"),
    }
    first.close();
    let again = async {
        while join().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, again).await.unwrap();
}

#[tokio::test]
async fn errors_of_connecting_say_what_is_wrong() {
    let try_it = |address: SocketAddr, stall: Duration| async move {
        let settings = Settings { stall, ..Settings::default() };
        connect(address, DEADLINE, settings, None, Echo).await.unwrap_err().to_string()
    };
    // Nobody listens, and nobody else gets the port; somebody listens and says nothing; something else
    // listens.
    let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    held.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let text = try_it(held.local_addr().unwrap().as_socket().unwrap(), DEADLINE).await;
    assert!(text.contains("cannot connect") && text.contains("refused"), "{text}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let text = try_it(silent.local_addr().unwrap(), Duration::from_millis(100)).await;
    assert!(text.contains("does it speak the messages protocol"), "{text}");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap();
    let ssh = thread::spawn(move || other.accept().unwrap().0.write_all(b"SSH-2.0\r\n"));
    let text = try_it(address, DEADLINE).await;
    assert!(text.contains("refuses"), "{text}");
    ssh.join().unwrap().unwrap();
}

/// The old client: each step waits for the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_client_at_our_server() {
    let server = Server::start(plan(&["127.0.0.1:0"], 2, || Echo)).unwrap();
    let address = server.addresses()[0];
    let old = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut byte = [0];
        stream.write_all(&[GO]).unwrap();
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [GO]);
        for message in [&b"hello"[..], b"", &[7; 100_000]] {
            stream.write_all(&(message.len() as u32).to_be_bytes()).unwrap();
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [GO]);
            stream.write_all(message).unwrap();
            let mut size = [0; 4];
            stream.read_exact(&mut size).unwrap();
            assert_eq!(u32::from_be_bytes(size) as usize, message.len());
            stream.write_all(&[GO]).unwrap();
            let mut echo = vec![0; message.len()];
            stream.read_exact(&mut echo).unwrap();
            assert_eq!(echo, message);
        }
        stream.write_all(&[0xF0, 0, 0, 0]).unwrap();
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [TOO_LARGE]);
    });
    tokio::task::spawn_blocking(|| old.join().unwrap()).await.unwrap();
}

/// The old libraries take a size that comes in place of an answer for a refusal: what they have begun goes
/// first, also where it came while ours was about to begin.
#[tokio::test]
async fn what_an_old_peer_has_begun_goes_before_what_waits_here() {
    struct Slow(Arc<Mutex<std::sync::mpsc::Receiver<()>>>);
    impl Hooks for Slow {
        fn message(&mut self, peer: &Peer, message: Vec<u8>) {
            // Until the next size of the peer is here.
            self.0.lock().unwrap().recv_timeout(DEADLINE).unwrap();
            peer.queue(message).unwrap();
        }
    }
    let (begun, may_go_on) = std::sync::mpsc::channel();
    let may_go_on = Arc::new(Mutex::new(may_go_on));
    let server = Server::start(plan(&["127.0.0.1:0"], 1, move || Slow(Arc::clone(&may_go_on)))).unwrap();
    let address = server.addresses()[0];
    let old = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut byte = [0];
        stream.write_all(&[GO]).unwrap();
        stream.read_exact(&mut byte).unwrap();
        for n in 0..5_u8 {
            stream.write_all(&[0, 0, 0, 1]).unwrap();
            // Acknowledged: it lies in the server's socket.
            wait_until("the size has arrived", || !Info::of(&stream).unwrap().is_outstanding());
            if n > 0 {
                begun.send(()).unwrap();
            }
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [GO], "the answer to message {n}, as the old library reads it");
            stream.write_all(&[n]).unwrap();
        }
        begun.send(()).unwrap();
        for n in 0..5_u8 {
            let mut size = [0; 4];
            stream.read_exact(&mut size).unwrap();
            assert_eq!(size, [0, 0, 0, 1]);
            stream.write_all(&[GO]).unwrap();
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [n]);
        }
    });
    tokio::task::spawn_blocking(|| old.join().unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_at_an_old_server() {
    let old = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = old.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = old.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        stream.write_all(&[GO]).unwrap();
        for _ in 0..3 {
            let mut size = [0; 4];
            stream.read_exact(&mut size).unwrap();
            let size = u32::from_be_bytes(size);
            if size > 1000 {
                stream.write_all(&[TOO_LARGE]).unwrap();
                continue;
            }
            stream.write_all(&[GO]).unwrap();
            let mut message = vec![0; size as usize];
            stream.read_exact(&mut message).unwrap();
            stream.write_all(&size.to_be_bytes()).unwrap();
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [GO]);
            stream.write_all(&message).unwrap();
        }
        // One more connection: too many, in the old way.
        let (mut stream, _) = old.accept().unwrap();
        stream.write_all(&[0; 254]).unwrap();
    });
    let (hooks, mut echoes) = forward();
    let peer = connect(address, DEADLINE, Settings::default(), None, hooks).await.unwrap();
    peer.send(&b"one"[..]).await.unwrap();
    assert_eq!(next(&mut echoes).await, b"one");
    assert_eq!(peer.send(vec![0; 1001]).await, Err(NotSent::Rejected(TOO_LARGE)));
    peer.send(&b"three"[..]).await.unwrap();
    assert_eq!(next(&mut echoes).await, b"three");
    let refused = connect(address, DEADLINE, Settings::default(), None, Echo).await.unwrap_err();
    assert!(refused.to_string().contains("refuses"), "{refused}");
    tokio::task::spawn_blocking(|| server.join().unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_hear_idleness_and_the_end_and_a_stop_lets_queues_drain() {
    struct Watch(mpsc::UnboundedSender<&'static str>);
    impl Hooks for Watch {
        fn start(&mut self, peer: &Peer) {
            self.0.send("start").unwrap();
            for _ in 0..60 {
                peer.queue(vec![1; 10_000]).unwrap();
            }
        }
        fn message(&mut self, _peer: &Peer, _message: Vec<u8>) {
            self.0.send("message").unwrap();
        }
        fn idle(&mut self, _peer: &Peer) {
            // Only the first matters.
            let _ = self.0.send("idle");
        }
        fn close(&mut self, _peer: &Peer, why: Option<&Failure>) {
            assert!(why.is_none());
            self.0.send("close").unwrap();
        }
    }
    let (said, mut heard) = mpsc::unbounded_channel();
    let mut plan = plan(&["127.0.0.1:0"], 2, move || Watch(said.clone()));
    plan.settings.idle = Duration::from_millis(20);
    let server = Server::start(plan).unwrap();
    let (hooks, mut came) = forward();
    let peer = connect(server.addresses()[0], DEADLINE, Settings::default(), None, hooks).await.unwrap();
    assert_eq!(timeout(DEADLINE, heard.recv()).await.unwrap(), Some("start"));
    assert_eq!(timeout(DEADLINE, heard.recv()).await.unwrap(), Some("idle"));
    peer.send(&b"x"[..]).await.unwrap();
    while timeout(DEADLINE, heard.recv()).await.unwrap() != Some("message") {}
    assert_eq!(server.stop(DEADLINE).await, 0);
    while timeout(DEADLINE, heard.recv()).await.unwrap() != Some("close") {}
    for _ in 0..60 {
        assert_eq!(next(&mut came).await.len(), 10_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_dropped_cuts_who_is_left() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    struct Watch(mpsc::UnboundedSender<&'static str>);
    impl Hooks for Watch {
        fn start(&mut self, peer: &Peer) {
            peer.queue(&b"nobody takes this"[..]).unwrap();
            self.0.send("start").unwrap();
        }
        fn message(&mut self, _peer: &Peer, _message: Vec<u8>) {}
        fn close(&mut self, _peer: &Peer, why: Option<&Failure>) {
            assert!(why.is_some());
            self.0.send("cut").unwrap();
        }
    }
    for stopped in [true, false] {
        let (said, mut heard) = mpsc::unbounded_channel();
        let server = Server::start(plan(&["127.0.0.1:0"], 2, move || Watch(said.clone()))).unwrap();
        let mut stream = tokio::net::TcpStream::connect(server.addresses()[0]).await.unwrap();
        stream.write_all(&[0xff]).await.unwrap();
        // Its greeting and a size, which is never answered.
        stream.read_exact(&mut [0; 5]).await.unwrap();
        assert_eq!(timeout(DEADLINE, heard.recv()).await.unwrap(), Some("start"));
        match stopped {
            true => assert_eq!(server.stop(Duration::from_millis(50)).await, 1),
            false => drop(server),
        }
        assert_eq!(timeout(DEADLINE, heard.recv()).await.unwrap(), Some("cut"), "{stopped}");
        // The end, or a reset: in any case not silence.
        let _ = timeout(DEADLINE, stream.read(&mut [0; 9])).await.expect("the connection is closed");
    }
}
