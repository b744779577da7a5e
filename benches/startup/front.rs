//! HTTPS for whom plain HTTP cannot be told.
//!
//! SOCI 0.4 fetches its indexes by HTTPS only, and layers by either. This listens on loopback, takes TLS off a connection that
//! begins with it, and passes everything on to the registry as it is asked by all others. It lies on the near side of the
//! link: a handshake costs no delay of the link's.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use integration::Scratch;
use integration::acceptor::Acceptor;
use integration::command::{command, run};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What a TLS connection begins with: a record of its handshake.
const HANDSHAKE: u8 = 0x16;

/// A running one; ends when dropped.
#[derive(Debug)]
pub(crate) struct Front {
    acceptor: Acceptor,
    certificate: PathBuf,
}

impl Front {
    /// Starts it in front of `target`, with a certificate that is made in `scratch`.
    pub(crate) fn start(scratch: &Scratch, target: SocketAddr) -> Result<Self> {
        let (certificate, key) = (
            scratch.path().join("front.crt"),
            scratch.path().join("front.key"),
        );
        let mut openssl = command("openssl");
        openssl.args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
        ]);
        openssl.args(["-subj", "/CN=localhost"]);
        openssl.args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
        run(openssl
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate))?;
        let chain = vec![CertificateDer::from_pem_file(&certificate)?];
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(&key)?)?;
        let tls = TlsAcceptor::from(Arc::new(config));
        let acceptor = Acceptor::start(move |near| {
            let tls = tls.clone();
            async move {
                // Either end may break off; the other one is told by its connection's end.
                let _ = pass(near, target, tls).await;
            }
        })?;
        Ok(Self {
            acceptor,
            certificate,
        })
    }

    /// `host:port` for references.
    pub(crate) fn host(&self) -> String {
        format!("localhost:{}", self.acceptor.address().port())
    }

    /// Has a program written in Go take its certificate for good.
    pub(crate) fn trust(&self, program: &mut Command) {
        program.env("SSL_CERT_FILE", &self.certificate);
    }
}

async fn pass(near: TcpStream, target: SocketAddr, tls: TlsAcceptor) -> Result<()> {
    near.set_nodelay(true)?;
    let mut first = [0];
    near.peek(&mut first).await?;
    match first {
        [HANDSHAKE] => join(tls.accept(near).await.context("no handshake")?, target).await,
        _ => join(near, target).await,
    }
}

async fn join(mut near: impl AsyncRead + AsyncWrite + Unpin, target: SocketAddr) -> Result<()> {
    let mut far = TcpStream::connect(target).await?;
    far.set_nodelay(true)?;
    copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}
