use std::fs;
use std::path::Path;

use native_tls::{Certificate, Identity, TlsConnector};

use super::fault::Fault;
use super::settings::{Check, Trust, unusable};
use super::wire::Wire;
use super::{ALPN, Tls};
use crate::lock::error::LockError;
use crate::lock::postgres::address::Stream;

/// A client that trusts as a URL says.
pub(super) fn client(trust: &Trust) -> Result<Tls, LockError> {
    let mut client = TlsConnector::builder();
    client
        .danger_accept_invalid_certs(trust.check == Check::Nothing)
        .danger_accept_invalid_hostnames(trust.check != Check::IssuerAndName);
    if trust.direct {
        client.request_alpns(&[ALPN]);
    }
    if let Some(file) = &trust.roots {
        let pem = read("sslrootcert", file)?;
        let roots = Certificate::stack_from_pem(&pem);
        let roots = roots.map_err(|error| unusable("sslrootcert", file, &error))?;
        if roots.is_empty() {
            let problem = "it has no certificate in PEM form";
            return Err(unusable("sslrootcert", file, &problem));
        }
        client.disable_built_in_roots(true);
        for root in roots {
            client.add_root_certificate(root);
        }
    }
    if let Some((certificate, key)) = &trust.identity {
        let chain = read("sslcert", certificate)?;
        let identity = Identity::from_pkcs8(&chain, &read("sslkey", key)?);
        let identity = identity.map_err(|error| {
            let problem = format!("{error} (the key must be in PKCS #8, `BEGIN PRIVATE KEY`)");
            unusable("sslkey", key, &problem)
        })?;
        client.identity(identity);
    }
    let client = client.build().map_err(|error| {
        let roots = trust.roots.as_deref().unwrap_or(Path::new("system"));
        let key = trust.identity.as_ref().map(|(_, key)| ("sslkey", &**key));
        let (option, file) = key.unwrap_or(("sslrootcert", roots));
        unusable(option, file, &error)
    })?;
    Ok(client.into())
}

/// Encrypts a connection to the server of this name.
pub(super) async fn handshake(
    client: &TlsConnector,
    name: &str,
    stream: Box<dyn Stream>,
    direct: bool,
) -> Result<Wire, Fault> {
    let connector = tokio_native_tls::TlsConnector::from(client.clone());
    let stream = connector.connect(name, stream).await;
    let stream = stream.map_err(|error| fault(&error, name))?;
    let session = stream.get_ref();
    let protocol = session.negotiated_alpn().unwrap_or_default();
    if direct && protocol.as_deref() != Some(ALPN.as_bytes()) {
        return Err(Fault::OtherProtocol);
    }
    let end_point = session.tls_server_end_point().unwrap_or_default();
    Ok(Wire::encrypted(Box::new(stream), end_point))
}

/// The system's library says in its own words what is wrong; these are OpenSSL's.
fn fault(error: &native_tls::Error, name: &str) -> Fault {
    let error = error.to_string();
    let says = |words: &[&str]| words.iter().any(|words| error.contains(words));
    if says(&["hostname mismatch", "IP address mismatch"]) {
        let name = name.into();
        Fault::WrongName { name, error }
    } else if says(&["certificate has expired", "certificate is not yet valid"]) {
        Fault::NotValidNow(error)
    } else if says(&[
        "local issuer certificate",
        "certificate signature failure",
        "self-signed",
        "self signed",
    ]) {
        Fault::UnknownIssuer
    } else if says(&["certificate verify failed"]) {
        Fault::Certificate(error)
    } else {
        Fault::Handshake(error)
    }
}

fn read(option: &'static str, file: &Path) -> Result<Vec<u8>, LockError> {
    fs::read(file).map_err(|error| unusable(option, file, &error))
}
