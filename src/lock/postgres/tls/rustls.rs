use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use tokio_rustls::TlsConnector;

use super::end_point::end_point;
use super::fault::Fault;
use super::settings::{Check, Trust, unusable};
use super::wire::Wire;
use super::{ALPN, Tls};
use crate::lock::error::LockError;
use crate::lock::postgres::address::Stream;

/// A client that trusts as a URL says. No provider has to be installed for the process.
pub(super) fn client(trust: &Trust) -> Result<Tls, LockError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        .expect("ring has what TLS 1.2 and 1.3 need");
    let verifier = Arc::new(Verifier::new(trust, provider)?);
    let config = config
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &trust.identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain = certificates("sslcert", certificate)?;
            let secret = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unusable("sslkey", key, &unread(&error, "private key")))?;
            let config = config.with_client_auth_cert(chain, secret);
            config.map_err(|error| unusable("sslkey", key, &error))?
        }
    };
    if trust.direct {
        config.alpn_protocols = vec![ALPN.into()];
    }
    Ok(config.into())
}

/// Encrypts a connection to the server of this name.
pub(super) async fn handshake(
    client: &Arc<ClientConfig>,
    name: &str,
    stream: Box<dyn Stream>,
    direct: bool,
) -> Result<Wire, Fault> {
    let server = ServerName::try_from(name.to_owned())
        .map_err(|_| Fault::Handshake(format!("`{name}` is not a host name")))?;
    let connector = TlsConnector::from(Arc::clone(client));
    let stream = connector.connect(server, stream).await;
    let stream = stream.map_err(|error| fault(&error, name))?;
    let (_, session) = stream.get_ref();
    if direct && session.alpn_protocol() != Some(ALPN.as_bytes()) {
        return Err(Fault::OtherProtocol);
    }
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    let end_point = certificate.and_then(|certificate| end_point(certificate));
    Ok(Wire::encrypted(Box::new(stream), end_point))
}

fn fault(error: &io::Error, name: &str) -> Fault {
    let text = error.to_string();
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(Error::InvalidCertificate(problem)) = inner else {
        return Fault::Handshake(text);
    };
    match problem {
        // The latter where a trusted authority has the same name.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => Fault::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Fault::WrongName {
                name: name.into(),
                error: problem.to_string(),
            }
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Fault::NotValidNow(problem.to_string()),
        CertificateError::Other(problem) if says(problem, "UnsupportedCertVersion") => {
            Fault::Version1
        }
        _ => Fault::Certificate(problem.to_string()),
    }
}

/// Whether it is this variant of an error that rustls passes on as a text.
fn says(problem: &OtherError, variant: &str) -> bool {
    problem.0.to_string() == variant
}

/// Looks at as much of a server's certificate as a URL asks for. That the server has its key is always checked: a login may be bound to
/// the certificate.
#[derive(Debug)]
struct Verifier {
    check: Check,
    authorities: Option<Arc<WebPkiServerVerifier>>,
    /// The certificates of the file that the URL names.
    given: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(trust: &Trust, provider: Arc<CryptoProvider>) -> Result<Self, LockError> {
        let algorithms = provider.signature_verification_algorithms;
        let given = match &trust.roots {
            Some(file) => certificates("sslrootcert", file)?,
            None => Vec::new(),
        };
        let authorities = match (trust.check, &trust.roots) {
            (Check::Nothing, _) => None,
            (_, Some(file)) => Some((file.as_path(), roots(file, &given)?)),
            (_, None) => Some((Path::new("system"), of_system())),
        };
        let authorities = authorities.map(|(source, roots)| {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = verifier.build();
            verifier.map_err(|error| unusable("sslrootcert", source, &error))
        });
        Ok(Self {
            check: trust.check,
            authorities: authorities.transpose()?,
            given,
            algorithms,
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = &self.authorities else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified = authorities.verify_server_cert(certificate, intermediates, name, ocsp, now);
        let Err(Error::InvalidCertificate(problem)) = &verified else {
            return verified;
        };
        match problem {
            // It comes last: all else is right.
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
                if self.check == Check::Issuer => {}
            // The server's own certificate, signed by itself, is the one in the file: it is valid today, but says that it is a CA's.
            CertificateError::Other(other)
                if says(other, "CaUsedAsEndEntity")
                    && self.given.iter().any(|given| given == certificate) =>
            {
                if self.check == Check::IssuerAndName {
                    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                }
            }
            _ => return verified,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What the system trusts; nothing of it may be broken for us.
fn of_system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn roots(file: &Path, given: &[CertificateDer<'static>]) -> Result<RootCertStore, LockError> {
    let mut roots = RootCertStore::empty();
    for certificate in given {
        let added = roots.add(certificate.clone());
        added.map_err(|error| unusable("sslrootcert", file, &error))?;
    }
    Ok(roots)
}

fn certificates(
    option: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, LockError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let certificates: Vec<_> =
        read.map_err(|error| unusable(option, file, &unread(&error, "certificate")))?;
    if certificates.is_empty() {
        let nothing = unread(&pem::Error::NoItemsFound, "certificate");
        return Err(unusable(option, file, &nothing));
    }
    Ok(certificates)
}

fn unread(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => format!("it has no {what} in PEM form"),
        error => error.to_string(),
    }
}
