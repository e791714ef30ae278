//! An HTTP proxy that makes tunnels (CONNECT, RFC 9110), as companies have them.

use anyhow::Result;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

/// A running proxy. Its thread waits for connections for as long as the process lives.
#[derive(Debug)]
pub struct TunnelProxy {
    address: SocketAddr,
    tunnels: Arc<AtomicU32>,
}

impl TunnelProxy {
    /// Starts one on the loopback.
    ///
    /// # Errors
    /// When it can't listen.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let tunnels = Arc::new(AtomicU32::new(0));
        let made = Arc::clone(&tunnels);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let made = Arc::clone(&made);
                // Whatever goes wrong with it is for the client to notice.
                thread::spawn(move || drop(tunnel(&stream, &made)));
            }
        });
        Ok(Self { address, tunnels })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many tunnels were made.
    #[must_use]
    pub fn tunnels(&self) -> u32 {
        self.tunnels.load(Ordering::Relaxed)
    }
}

fn tunnel(client: &TcpStream, made: &AtomicU32) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut asked = String::new();
    reader.read_line(&mut asked)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let target = asked.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let server = TcpStream::connect(target.ok_or(io::ErrorKind::InvalidInput)?)?;
    (&*client).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    made.fetch_add(1, Ordering::Relaxed);
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let copied = io::copy(&mut reader, &mut &server);
    server.shutdown(Shutdown::Both)?;
    copied.map(drop)
}
