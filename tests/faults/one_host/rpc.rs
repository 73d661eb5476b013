//! The rpc port, by those who have no password and by one who has it.

use piman::rpc::{CallError, Data, Nothing, Secret, connect};
use piman_core::rpc::Codec;
use std::sync::Arc;

use super::*;

fn server(folder: &std::path::Path) -> Server {
    let password = folder.join("password");
    fs::write(&password, "secret\n").unwrap();
    let password = password.to_str().unwrap();
    Server::start_services(&folder.join("state"), &["--rpc-port", "0", "--rpc-password-file", password])
}

/// What a peer sends before any login: a greeting and a message of 3 MiB, or a pickle of that size.
fn before_login(pickle: bool, stream: &mut TcpStream) {
    let long = vec![b'x'; 3 << 20];
    let head = u32::try_from(long.len()).unwrap();
    // Either end of the connection may come before all is sent.
    let _ = if pickle {
        let head = [b"\x80\x02X".as_slice(), &head.to_le_bytes()].concat();
        stream.write_all(&head).and_then(|()| stream.write_all(&long))
    } else {
        let head = [&[255], head.to_be_bytes().as_slice()].concat();
        stream.write_all(&head).and_then(|()| stream.write_all(&long))
    };
}

#[test]
fn before_the_login_nobody_takes_memory() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let port = server.port("rpc");
    drop(from([127, 0, 0, 1], port));
    forget_peak(&server);
    let before = server.memory_kb("VmHWM");
    thread::scope(|scope| {
        for n in 0..64 {
            scope.spawn(move || before_login(n % 2 == 0, &mut from([127, 0, 0, n + 1], port)));
        }
    });
    let more = server.memory_kb("VmHWM") - before;
    assert!(more < 12 << 10, "{more} kB for 64 connections that sent 3 MiB each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pi_with_the_password_that_takes_no_call_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], server.port("rpc")));
    let secret = || Secret::new(Some("secret".into()));
    forget_peak(&server);
    let before = server.memory_kb("VmHWM");
    // Each sends more long calls than the server answers in that time.
    let mut greedy = Vec::new();
    for _ in 0..8 {
        let peer = connect(address, Codec::Postcard, secret(), Arc::new(Nothing), WITHIN).await.unwrap();
        for _ in 0..16 {
            let peer = peer.clone();
            greedy.push(tokio::spawn(async move {
                peer.call(200, vec![Data::Bytes(vec![1; 4_000_000])], WITHIN).await
            }));
        }
    }
    let other = connect(address, Codec::Pickle, secret(), Arc::new(Nothing), WITHIN).await.unwrap();
    for _ in 0..20 {
        assert!(other.call(piman_core::rpc::STATUS, vec![], WITHIN).await.is_ok(), "meanwhile");
    }
    for call in greedy {
        // There is no such function, or there was no room: either way it is said.
        let said = call.await.unwrap();
        assert!(matches!(said, Err(CallError::Function(_))), "{said:?}");
    }
    let more = server.memory_kb("VmHWM") - before;
    // What waits, and what two threads decode at a moment.
    assert!(more < 192 << 10, "{more} kB of the 512 MB that were sent");
}
