//! A network that takes its time: a TCP proxy that hands everything on a little later, and in order.

use std::hint::spin_loop;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How much earlier than wanted a thread asks to be woken: the system wakes it up to this much too late.
const WAKING: Duration = Duration::from_micros(80);

/// Starts a proxy to a port on this machine, and tells its own port. It lives as long as the process.
///
/// What comes in is on its way for `each_way`, however much else is on its way too. On threads, since tokio's timers count
/// whole milliseconds.
pub fn proxy(target: u16, each_way: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.expect("a client");
            let server = TcpStream::connect(("127.0.0.1", target)).expect("the server is up");
            let copy = |stream: &TcpStream| {
                stream.set_nodelay(true).expect("a TCP socket");
                stream.try_clone().expect("a TCP socket")
            };
            let (to_server, to_client) = (copy(&server), copy(&client));
            thread::spawn(move || carry(client, to_server, each_way));
            thread::spawn(move || carry(server, to_client, each_way));
        }
    });
    port
}

/// Reads until the end, on this thread, and writes what was read when its time has come, on another.
fn carry(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (on_its_way, arriving) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        for (due, bytes) in arriving {
            wait_until(due);
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        // It fails if the other side has closed it already.
        drop(to.shutdown(Shutdown::Write));
    });
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let due = Instant::now() + delay;
        if on_its_way.send((due, buffer[..length].to_vec())).is_err() {
            return;
        }
    }
}

fn wait_until(due: Instant) {
    thread::sleep(
        due.saturating_duration_since(Instant::now())
            .saturating_sub(WAKING),
    );
    while Instant::now() < due {
        spin_loop();
    }
}
