//! HTTP/2 by hand, for what no library sends: strange authorities, floods of pings.
//!
//! Nothing here decodes headers. Whether an answer has a message is enough to tell whether it is one.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use starling_compat_tests::Server;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEADER_LEN: usize = 9;
/// No answer takes this long.
const DEADLINE: Duration = Duration::from_secs(10);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The number of the setting, and what it is while a server does not say.
const MAX_CONCURRENT_STREAMS: u16 = 3;
const SETTING_LEN: usize = 6;

/// The stream of the only request on a connection.
const STREAM: u32 = 1;

struct Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

pub(super) struct Connection {
    socket: TcpStream,
}

impl Connection {
    pub(super) fn open(server: &Server) -> Self {
        let socket =
            TcpStream::connect(server.address()).expect("a started server accepts connections");
        socket.set_read_timeout(Some(DEADLINE)).expect("a socket has a deadline");
        let mut connection = Self { socket };
        connection.socket.write_all(PREFACE).expect("a connection takes its preface");
        connection.send(SETTINGS, 0, 0, &[]).expect("a connection takes settings");
        connection
    }

    /// Calls a unary method and says what came: a message, an error, or the end of the connection.
    pub(super) fn call(&mut self, headers: &[(&str, &str)], message: &[u8]) -> String {
        let block: Vec<u8> = headers.iter().flat_map(|header| literal(*header)).collect();
        let length = u32::try_from(message.len()).expect("messages here are small");
        let body = [&[0][..], &length.to_be_bytes(), message].concat();
        let sent = self
            .send(HEADERS, END_HEADERS, STREAM, &block)
            .and_then(|()| self.send(DATA, END_STREAM, STREAM, &body));
        if sent.is_err() {
            return "the connection is closed".into();
        }
        loop {
            let Ok(frame) = self.next() else { return "the connection is closed".into() };
            match frame.kind {
                DATA if !frame.payload.is_empty() => return "a message".into(),
                HEADERS if frame.flags & END_STREAM != 0 => return "an error".into(),
                RESET => return "the stream is reset".into(),
                GO_AWAY => return "the server goes away".into(),
                _ => {}
            }
        }
    }

    /// How many streams the server lets a client have; `None` if it does not say.
    pub(super) fn max_concurrent_streams(&mut self) -> Option<u32> {
        loop {
            let frame = self.next().expect("a server begins with its settings");
            if frame.kind != SETTINGS || frame.flags & ACK != 0 {
                continue;
            }
            return frame.payload.chunks_exact(SETTING_LEN).find_map(|setting| {
                let (id, value) = setting.split_at(2);
                let is_it = id == MAX_CONCURRENT_STREAMS.to_be_bytes();
                is_it.then(|| u32::from_be_bytes(value.try_into().expect("four bytes are left")))
            });
        }
    }

    /// Sends pings one after the other; false when the server ends the connection for them.
    pub(super) fn ping(&mut self, count: usize) -> bool {
        for _ in 0..count {
            if self.send(PING, 0, 0, &[0; 8]).is_err() {
                return false;
            }
            loop {
                match self.next() {
                    Ok(Frame { kind: GO_AWAY, .. }) | Err(_) => return false,
                    Ok(Frame { kind: PING, flags, .. }) if flags & ACK != 0 => break,
                    Ok(_) => {}
                }
            }
        }
        true
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).expect("frames here are small").to_be_bytes();
        let mut frame = length.get(1..).unwrap_or_default().to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.socket.write_all(&frame)
    }

    fn next(&mut self) -> io::Result<Frame> {
        let mut header = [0; FRAME_HEADER_LEN];
        self.socket.read_exact(&mut header)?;
        let [a, b, c, kind, flags, ..] = header;
        let length = u32::from_be_bytes([0, a, b, c]);
        let mut payload = vec![0; usize::try_from(length).expect("a frame fits into memory")];
        self.socket.read_exact(&mut payload)?;
        Ok(Frame { kind, flags, payload })
    }
}

/// The headers of a gRPC call.
pub(super) fn grpc_headers(path: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// A header as a literal that no table is needed for.
fn literal((name, value): (&str, &str)) -> Vec<u8> {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).expect("headers here are short");
        assert!(length < 0x7f, "a longer one has its length in more bytes");
        [&[length], text.as_bytes()].concat()
    };
    [vec![0], text(name), text(value)].concat()
}
