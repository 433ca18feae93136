//! Connections: accepted, shaken hands with under a limit, handed to the gRPC server.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Handshakes under way at once; a client that connects and says nothing holds a place for [`PATIENCE`] at most.
const MAX_HANDSHAKES: usize = 512;
/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The other end of a secure connection: stands in the extensions of each request on it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it comes from.
    pub address: SocketAddr,
    /// Its certificate, verified; unset when it gave none.
    pub certificate: Option<CertificateDer<'static>>,
}

/// A secure connection.
pub struct SecureStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

/// Accepts secure connections.
pub struct Acceptor;

impl Acceptor {
    /// Accepts until the stream is dropped. Every handshake uses the settings of its moment, so new certificates reach new
    /// connections, and old connections stay as they are.
    pub fn accept(
        listener: TcpListener,
        config: Arc<ArcSwap<ServerConfig>>,
    ) -> ReceiverStream<Result<SecureStream, io::Error>> {
        let (accepted_tx, accepted_rx) = mpsc::channel(64);
        tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
            loop {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let accepted = tokio::select! {
                    () = accepted_tx.closed() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((socket, address)) = accepted else {
                    // Out of descriptors, most likely: others must close first.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (accepted_tx, config) = (accepted_tx.clone(), config.load_full());
                tokio::spawn(async move {
                    let _ = socket.set_nodelay(true);
                    let shaken = tokio::time::timeout(PATIENCE, TlsAcceptor::from(config).accept(socket)).await;
                    drop(place);
                    match shaken {
                        Ok(Ok(stream)) => {
                            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                            let peer = Peer { address, certificate: certificate.map(|c| c.clone().into_owned()) };
                            // The server is gone when nobody takes it.
                            let _ = accepted_tx.send(Ok(SecureStream { stream, peer })).await;
                        }
                        Ok(Err(error)) => tracing::debug!(%address, %error, "a TLS handshake failed"),
                        Err(_) => tracing::debug!(%address, "a TLS handshake took too long"),
                    }
                });
            }
        });
        ReceiverStream::new(accepted_rx)
    }
}

impl Connected for SecureStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for SecureStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for SecureStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
