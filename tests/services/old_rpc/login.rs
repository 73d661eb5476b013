//! Wrong answers to a login, wrong passwords, and guessing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use piman::rpc::{CallError, Data, Nothing, RpcError, Secret, connect};
use piman_core::rpc::auth::{LoginOut, Verdict};
use piman_core::rpc::{Codec, Protocol};
use piman_tests::server::{connect_from, wait_until};

use super::{Agent, DEADLINE, Old, SERIAL, message, start};

/// A server that says this to whoever comes, and closes then or not.
fn says(bytes: Vec<u8>, closes: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            // The login is read first, so that closing is no reset.
            let _ = stream.read(&mut [0; 1000]);
            let _ = stream.write_all(&bytes);
            if !closes {
                open.push(stream);
            }
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_answer_to_the_login_is_an_error_that_says_so() {
    let verdict = message(&Verdict(true));
    let call = message(&piman_core::rpc::CallOut { opcode: 1, retcode: 5, args: &Data::Tuple(vec![]) });
    let garbage = [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec(),
        vec![0; 100],
        call,
        message(&piman_core::rpc::AnswerOut { retcode: 0xAA, value: &Data::from("yes") }),
        b"N.".to_vec(),
        // A text without an end: no more of it is kept than a login may have.
        [b"V".to_vec(), vec![b'x'; 100_000]].concat(),
    ];
    for protocol in [Protocol::Pickle, Protocol::Auto] {
        let join = |port: u16, within| {
            connect((Ipv4Addr::LOCALHOST, port), protocol, Secret::new(None), Arc::new(Nothing), within)
        };
        for bytes in &garbage {
            let error = join(says(bytes.clone(), false), DEADLINE).await.unwrap_err();
            assert!(matches!(error, RpcError::NoAnswer), "{}: {error}", bytes.escape_ascii());
        }
        // Cut after each byte.
        for n in 0..verdict.len() {
            let error = join(says(verdict[..n].to_vec(), true), DEADLINE).await.unwrap_err();
            assert!(matches!(error, RpcError::Closed { midway, .. } if midway == (n > 0)), "{n}: {error}");
        }
        // Nothing, or the beginning only.
        let within = Duration::from_millis(300);
        for n in [0, 1, verdict.len() - 1] {
            let began = Instant::now();
            let error = join(says(verdict[..n].to_vec(), false), within).await.unwrap_err();
            assert!(matches!(error, RpcError::Unanswered { .. }), "{n}: {error}");
            assert!(error.to_string().contains("did not answer the login within 0.3 s"), "{error}");
            assert!(began.elapsed() >= within);
        }
        // The first call is cut in its answer: it ends at once, and does not wait for its time-out.
        let port = says([verdict.clone(), b"\x80\x03(C\x01A".to_vec()].concat(), true);
        let peer = join(port, DEADLINE).await.unwrap();
        assert_eq!(peer.call(1, vec![], Duration::from_secs(3600)).await, Err(CallError::Closed));
    }
    // The first byte of an answer of ours, which nothing follows.
    let within = Duration::from_millis(300);
    let secret = Secret::new(None);
    let address = (Ipv4Addr::LOCALHOST, says(vec![0xFB], false));
    let error = connect(address, Protocol::Auto, secret, Arc::new(Nothing), within).await.unwrap_err();
    assert!(matches!(error, RpcError::Unanswered { .. }), "{error}");
}

#[test]
fn the_agent_says_what_is_wrong_with_an_answer_to_its_login() {
    let verdict = message(&Verdict(true));
    for (bytes, closes, what) in [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), false, "is it another service?"),
        (b"N.".to_vec(), false, "is it another service?"),
        (verdict[..7].to_vec(), true, "closed the connection in the middle of its answer"),
        (vec![], true, "closed the connection without an answer"),
        (vec![], false, "did not answer in time"),
        ([verdict.clone(), b"\x80\x03(C\x01R".to_vec()].concat(), true, "in the middle of a message"),
        ([verdict.clone(), b"\xff\xff\xff".to_vec()].concat(), false, "reading a call of the server"),
    ] {
        let agent = Agent::start(says(bytes, closes), SERIAL, &[]);
        agent.wait_log(what);
    }
}

/// The answer of a server to a login with this password, and how long it took.
fn old_login(from: [u8; 4], port: u16, password: &str) -> (bool, Duration) {
    let mut stream = connect_from(from, port);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let began = Instant::now();
    stream.write_all(&message(&LoginOut(Some(password)))).unwrap();
    let mut answer = vec![0; message(&Verdict(true)).len()];
    stream.read_exact(&mut answer).unwrap();
    let took = began.elapsed();
    assert!(answer == message(&Verdict(true)) || answer == message(&Verdict(false)));
    (answer == message(&Verdict(true)), took)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg_attr(lacks = "python3", ignore = "needs python3")]
async fn a_wrong_password_is_answered_before_an_old_client_gives_up() {
    let server = start(Some("secret"), Arc::new(Nothing));
    let port = server.address().port();
    tokio::task::spawn_blocking(move || {
        let times: Vec<_> = (1..=4).map(|i| old_login([127, 0, 1, i], port, "guess")).collect();
        assert!(times.iter().all(|(admitted, _)| !admitted));
        // The machine may be busy for once.
        let fastest = times.iter().map(|(_, took)| *took).min().unwrap();
        assert!(fastest < Duration::from_millis(500), "{times:?}");
        // The library itself, which waits for one second.
        for protocol in [2, 4] {
            let options = format!(
                r#"{{"role": "client", "port": {port}, "password": "guess", "protocol": {protocol}}}"#
            );
            let old = Old::start(&options);
            assert_eq!(old.says("refused"), "");
        }
    })
    .await
    .unwrap();
    for codec in [Codec::Postcard, Codec::Pickle] {
        let secret = Secret::new(Some("guess".into()));
        let began = Instant::now();
        let error = connect(server.address(), codec, secret, Arc::new(Nothing), DEADLINE).await.unwrap_err();
        assert!(matches!(error, RpcError::Denied), "{error}");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_limited_by_attempts() {
    let server = start(Some("secret"), Arc::new(Nothing));
    let address = server.address();
    let port = address.port();
    let guess = move |codec: Codec| async move {
        let secret = Secret::new(Some("guess".into()));
        connect(address, codec, secret, Arc::new(Nothing), DEADLINE).await.map(drop).unwrap_err()
    };
    // All at once, by both protocols: no more than the burst is looked at.
    let guesses: Vec<_> = (0..60)
        .map(|i| tokio::spawn(guess(if i % 2 == 0 { Codec::Pickle } else { Codec::Postcard })))
        .collect();
    for guess in guesses {
        let error = guess.await.unwrap();
        assert!(matches!(error, RpcError::Denied | RpcError::Unseen), "{error}");
    }
    tokio::task::spawn_blocking(move || {
        // Ten and one a second were looked at; nothing is, as long as somebody goes on guessing.
        let (mut admitted, began) = (0, Instant::now());
        for _ in 0..20 {
            let guessing: Vec<_> = (0..4)
                .map(|_| std::thread::spawn(move || old_login([127, 0, 0, 1], port, "guess")))
                .collect();
            admitted += usize::from(old_login([127, 0, 0, 1], port, "secret").0);
            guessing.into_iter().for_each(|g| assert!(!g.join().unwrap().0));
        }
        assert!(admitted < 20, "the right password is looked at while the limit is exceeded");
        println!("{admitted} of 20 right ones were looked at in {:?}", began.elapsed());
        // Another address is not concerned, and this one gets in again after a while.
        assert!(old_login([127, 0, 0, 9], port, "secret").0);
        wait_until("the right password is looked at again", || old_login([127, 0, 0, 1], port, "secret").0);
    })
    .await
    .unwrap();
    let _ = TcpStream::connect(address).unwrap();
}
