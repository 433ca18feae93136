//! A name server for a mesh: the names that a test gives it, and "no such name" for all others.
//!
//! Only what Envoy's resolver asks is understood: one question, for IPv4 addresses (others have no records).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Context as _, Result};
use tokio::task::JoinHandle;

use crate::netns::{NODE_IP, Netns};

/// Port of DNS.
const PORT: u16 = 53;

/// Header: id, flags, counts of questions and of three kinds of records.
const HEADER: usize = 12;

/// Type of an IPv4 address record.
const A: [u8; 2] = [0, 1];

/// Serves on the node's address until the task is aborted.
///
/// # Errors
/// When the port is taken.
pub fn serve(node: &Netns, names: BTreeMap<String, Ipv4Addr>) -> Result<JoinHandle<()>> {
    let socket = node.enter(|| UdpSocket::bind((NODE_IP, PORT))).context("cannot serve DNS")?;
    socket.set_nonblocking(true).context("cannot make a socket non-blocking")?;
    let socket = tokio::net::UdpSocket::from_std(socket).context("cannot watch a socket")?;
    Ok(tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let Ok((n, from)) = socket.recv_from(&mut buffer).await else { continue };
            if let Some(answer) = answer(&buffer[..n], &names) {
                let _ = socket.send_to(&answer, from).await;
            }
        }
    }))
}

/// The answer to a query; none for what is no query.
fn answer(query: &[u8], names: &BTreeMap<String, Ipv4Addr>) -> Option<Vec<u8>> {
    let (header, rest) = query.split_at_checked(HEADER)?;
    let mut name = Vec::new();
    let mut at = 0;
    loop {
        let length = usize::from(*rest.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        name.push(String::from_utf8_lossy(rest.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let question = rest.get(..at + 4)?;
    let asked = rest.get(at..at + 2)?;
    let known = names.get(&name.join("."));
    let address = known.filter(|_| asked == A);
    // A response to a recursive query; 3 is "no such name".
    let flags = [0x81, if known.is_some() { 0x80 } else { 0x83 }];
    let mut answer = header.get(..2)?.to_vec();
    answer.extend(flags);
    answer.extend([0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(question);
    if let Some(address) = address {
        // The name is that of the question; class IN, 60 seconds.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_and_unknown_names() {
        let names = BTreeMap::from([("a.example".to_owned(), Ipv4Addr::new(10, 0, 0, 1))]);
        let query = |name: &str, kind: u8| {
            let mut query = vec![7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                query.push(u8::try_from(label.len()).unwrap());
                query.extend(label.bytes());
            }
            query.extend([0, 0, kind, 0, 1]);
            query
        };
        let known = answer(&query("A.example", 1), &names).unwrap();
        assert_eq!((known[3] & 15, known[7], &known[known.len() - 4..]), (0, 1, &[10, 0, 0, 1][..]));
        let v6 = answer(&query("a.example", 28), &names).unwrap();
        assert_eq!((v6[3] & 15, v6[7]), (0, 0));
        assert_eq!(answer(&query("b.example", 1), &names).unwrap()[3] & 15, 3);
        assert_eq!(answer(&[1, 2, 3], &names), None);
    }
}
