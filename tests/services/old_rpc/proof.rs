//! Thousands of calls each way between an old peer and ours.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use piman::rpc::{Answer, CallError, Data, Functions, Peer, Request, Secret, connect};
use piman_core::rpc::Codec;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{DEADLINE, Old, start};

/// What both sides call in the proof, and the peer that has come.
struct Proof {
    served: AtomicUsize,
    opened: UnboundedSender<Peer>,
}

impl Functions for Proof {
    fn call(&self, _peer: &Peer, request: Request) -> Answer {
        self.served.fetch_add(1, Ordering::Relaxed);
        let answer = match (request.opcode, &request.args[..], &request.keywords[..]) {
            (2, [Data::Int(n), payload], []) => Ok(Data::Tuple(vec![(2 * n + 1).into(), payload.clone()])),
            (2, [Data::Int(n)], [(key, payload)]) if key.str() == Some("payload") => {
                Ok(Data::Tuple(vec![(2 * n + 1).into(), payload.clone()]))
            }
            (0xBB, [], []) => Ok("proof1".into()),
            _ => Err(format!("TypeError: wrong call: {request:?}")),
        };
        Box::pin(std::future::ready(answer))
    }

    fn opened(&self, peer: &Peer) {
        let _ = self.opened.send(peer.clone());
    }
}

fn sample(n: i64) -> Data {
    if n % 500 == 0 {
        return Data::Bytes(vec![b'.'; 5000]);
    }
    match n % 10 {
        0 => n.into(),
        1 => (-n).into(),
        2 => (n << 40).into(),
        3 => Data::Float(n as f64 / 8.0),
        4 => format!("t\u{e9}xt\n{n}").into(),
        5 => Data::Bytes(n.to_le_bytes().to_vec()),
        6 => Data::List(vec![n.into(), Data::Tuple(vec![n.into(), Data::None])]),
        7 => Data::dict([("n", n.into())]),
        8 => Data::Set(vec![n.into()]),
        _ => true.into(),
    }
}

/// Calls from this side, many at once; every answer is looked at.
async fn call_many(peer: &Peer, count: i64, at_once: i64) {
    let tasks: Vec<_> = (0..at_once)
        .map(|start| {
            let peer = peer.clone();
            tokio::spawn(async move {
                for n in (start..count).step_by(usize::try_from(at_once).unwrap()) {
                    if n % 7 == 0 {
                        let error = CallError::Function(format!("ValueError: no {n}"));
                        assert_eq!(peer.call(3, vec![n.into()], DEADLINE).await, Err(error));
                        continue;
                    }
                    let want = Data::Tuple(vec![(2 * n + 1).into(), sample(n)]);
                    assert_eq!(peer.call(2, vec![n.into(), sample(n)], DEADLINE).await, Ok(want));
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

const CALLS: i64 = 12_000;

/// 12,000 calls of an old peer while we call it 12,000 times, in both roles: none is answered wrongly.
async fn proof(role: &str, protocol: u8) {
    let (opened, mut peers) = unbounded_channel();
    let functions = Arc::new(Proof { served: AtomicUsize::new(0), opened });
    let options = |role: &str, port: u16| {
        format!(
            r#"{{"role": "{role}", "port": {port}, "password": "secret", "protocol": {protocol},
                "count": {CALLS}, "threads": 4, "until": "told"}}"#
        )
    };
    let secret = Secret::new(Some("secret".into()));
    let began = Instant::now();
    let (old, peer, _server);
    if role == "client" {
        let server = start(Some("secret"), Arc::clone(&functions) as Arc<dyn Functions>);
        let started = Old::start(&options(role, server.address().port()));
        (old, _server) = (started, Some(server));
        peer = peers.recv().await.unwrap();
        // The library lets calls in a moment after its login is answered; until then it refuses them.
        while let Err(e) = peer.call(0xBB, vec![], DEADLINE).await {
            assert!(matches!(&e, CallError::Function(text) if text.contains("not logged in")), "{e}");
        }
    } else {
        let started = Old::start(&options(role, 0));
        old = started;
        let address = (Ipv4Addr::LOCALHOST, old.port());
        peer = connect(address, Codec::Pickle, secret, functions.clone(), DEADLINE).await.unwrap();
        _server = None;
    }
    call_many(&peer, CALLS, 8).await;
    peer.call(4, vec![], DEADLINE).await.unwrap();
    let old = tokio::task::spawn_blocking(move || {
        old.says("in");
        assert_eq!(old.says("wrong"), "0 []");
        old.says("end");
        old
    });
    drop(old.await.unwrap());
    tokio::time::timeout(DEADLINE, peer.closed()).await.unwrap();
    let more = usize::from(role == "many");
    assert_eq!(functions.served.load(Ordering::Relaxed), usize::try_from(CALLS).unwrap() + more);
    println!("{role}, protocol {protocol}: {:.1} s", began.elapsed().as_secs_f32());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn twelve_thousand_calls_each_way_with_an_old_server() {
    for (role, protocol) in [("one", 2), ("many", 3), ("one", 5)] {
        proof(role, protocol).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn twelve_thousand_calls_each_way_with_an_old_client() {
    for protocol in [2, 3, 4] {
        proof("client", protocol).await;
    }
}
