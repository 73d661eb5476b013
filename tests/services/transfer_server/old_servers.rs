//! Our clients with old servers.

use piman_core::transfer::{PROBE, RANGES};

use super::*;

/// An old server: it knows `D` and `U`, and does with anything else, and with the name that our clients ask it
/// for, what `odd` says; `boasts` of ranges, of which it then knows nothing.
fn old_server(
    content: &'static [u8],
    odd: &'static [u8],
    boasts: bool,
) -> (SocketAddr, std::sync::mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 256];
            if stream.read_exact(&mut request).is_err() {
                continue;
            }
            match request[0] {
                b'D' if request[1..].starts_with(PROBE) && boasts => {
                    stream.write_all(b"F").unwrap();
                    stream.write_all(&RANGES.to_be_bytes()).unwrap();
                }
                b'D' if request[1..].starts_with(PROBE) => stream.write_all(odd).unwrap(),
                b'D' => {
                    stream.write_all(b"T").unwrap();
                    stream.write_all(&(content.len() as u64).to_be_bytes()).unwrap();
                    stream.read_exact(&mut [0]).unwrap();
                    stream.write_all(content).unwrap();
                }
                b'U' => {
                    let mut size = [0; 8];
                    stream.write_all(b"T").unwrap();
                    stream.read_exact(&mut size).unwrap();
                    stream.write_all(b"T").unwrap();
                    let mut bytes = vec![0; u64::from_be_bytes(size) as usize];
                    stream.read_exact(&mut bytes).unwrap();
                    tell.send(bytes).unwrap();
                }
                _ => stream.write_all(odd).unwrap(),
            }
        }
    });
    (address, told)
}

#[test]
fn our_clients_with_servers_of_old() {
    let out = tempfile::tempdir().unwrap();
    let odds = [&b""[..], b"E", b"F\0\0\0\0\0\0\0\0", b"T"];
    for (odd, boasts) in odds.into_iter().flat_map(|odd| [(odd, false), (odd, true)]) {
        let (address, told) = old_server(b"0123456789", odd, boasts);
        let to = out.path().join(format!("f{}", odd.len()));
        // What is there is of no use without ranges.
        fs::write(part_beside(&to), b"012").unwrap();
        let outcome = got(address, "f", &to).unwrap();
        assert_eq!(outcome, Outcome { size: 10, moved: 10, already: false, resumed_at: 0 }, "{odd:?}");
        assert_eq!(fs::read(&to).unwrap(), b"0123456789");
        let outcome = putting(address, &to, "g").unwrap();
        assert_eq!(outcome, Outcome { size: 10, moved: 10, already: false, resumed_at: 0 }, "{odd:?}");
        assert_eq!(told.recv().unwrap(), b"0123456789");
        fs::remove_file(&to).unwrap();
    }
}
