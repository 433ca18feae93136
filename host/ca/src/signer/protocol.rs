//! Messages between the control plane and its signer: a length of four bytes, then JSON.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::authority::{IssueError, Lifetimes, Order, PublicBundle};
use crate::roots::{Rotation, SecretPlace};

/// Longest message in bytes, either way.
pub(crate) const MAX_MESSAGE: usize = 4 << 20;

/// What the signer is told first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Where the key comes from.
    pub source: Source,
    /// Limits.
    pub lifetimes: Lifetimes,
}

/// Where a signing key comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// An operator's folder.
    Plugged {
        /// The folder.
        dir: PathBuf,
        /// `ISTIO_MULTIROOT_MESH`.
        accepts_new_roots: bool,
    },
    /// A key of our own.
    SelfSigned {
        /// Where it is kept.
        place: Place,
        /// Organisation of its certificate: the trust domain.
        organization: String,
        /// Life of its certificate, `CITADEL_SELF_SIGNED_CA_CERT_TTL`.
        lifetime: Duration,
        /// Its size, `CITADEL_SELF_SIGNED_CA_RSA_KEY_SIZE`.
        rsa_bits: u32,
        /// When its certificate is renewed.
        rotation: Rotation,
    },
}

/// Where a key of our own is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// Nowhere: it is gone with the process.
    Memory,
    /// Files of a folder.
    Folder(PathBuf),
    /// A secret of a cluster.
    Secret(SecretPlace),
}

#[derive(Serialize, Deserialize)]
pub(crate) enum ToSigner {
    Start(Start),
    Issue { id: u64, order: Order },
}

#[derive(Serialize, Deserialize)]
pub(crate) enum FromSigner {
    /// First, and whenever it changes.
    Bundle(PublicBundle),
    /// It cannot start; it ends.
    Failed(String),
    Issued {
        id: u64,
        #[serde(with = "crate::wire::base64")]
        der: Vec<u8>,
    },
    Refused {
        id: u64,
        error: IssueError,
    },
    /// Something for the log.
    Warning(String),
}

pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message).map_err(io::Error::other)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    serde_json::from_slice(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Length of the message that follows.
pub(crate) fn length(header: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(header) as usize;
    if length > MAX_MESSAGE { Err(io::Error::new(io::ErrorKind::InvalidData, "message too long")) } else { Ok(length) }
}

pub(crate) fn write(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// The next message; `None` at the end.
pub(crate) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut header = [0; 4];
    match from.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut body = vec![0; length(header)?];
    from.read_exact(&mut body)?;
    decode(&body).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_all_kinds_are_survived() {
        for bytes in [&b"\x00\x00\x00\x02{}"[..], b"\xff\xff\xff\xff", b"\x00\x00\x00\x09short", b"\x00\x00"] {
            let read = read::<ToSigner>(&mut &*bytes);
            assert!(!matches!(read, Ok(Some(_))), "{bytes:?}");
        }
        let frame = encode(&ToSigner::Start(Start {
            source: Source::Plugged { dir: "/x".into(), accepts_new_roots: true },
            lifetimes: Lifetimes::default(),
        }));
        assert!(matches!(read::<ToSigner>(&mut &*frame.unwrap()), Ok(Some(ToSigner::Start(_)))));
    }
}
