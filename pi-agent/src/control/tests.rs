use super::*;

#[test]
fn an_order_to_wipe_is_for_one_disk() {
    let mut machine = Machine::default();
    machine.takes("1 a".into());
    machine.wiped = true;
    machine.takes("1 a".into());
    assert!(machine.wiped, "the next try, with the same disk");
    machine.takes("1 b".into());
    assert!(!machine.wiped);
    machine.takes("1 a".into());
    assert!(!machine.wiped);
}

#[test]
fn a_server_that_lost_power_is_noticed() {
    use rustix::net::sockopt;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Server { host: "127.0.0.1".into(), control_port: port, rootfs_port: port };
    let stream = server.connect(port).unwrap();
    assert!(sockopt::socket_keepalive(&stream).unwrap());
    let pauses = sockopt::tcp_keepintvl(&stream).unwrap() * sockopt::tcp_keepcnt(&stream).unwrap();
    assert!(sockopt::tcp_keepidle(&stream).unwrap() + pauses <= Duration::from_secs(120));
}
