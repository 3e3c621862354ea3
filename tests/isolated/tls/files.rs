//! Options that cannot be used, and files that are not what they should be.

use tower_realm_lock::LockError;

use super::refusal;
use super::server::TlsServer;

#[tokio::test]
async fn a_value_that_is_none_is_named_with_those_that_are() {
    let modes = "`disable`, `prefer`, `require`, `verify-ca` or `verify-full`";
    for (options, says) in [
        ("sslmode=allow", ["sslmode cannot be allow", modes]),
        ("sslmode=Require", ["sslmode cannot be Require", modes]),
        ("sslmode=", ["sslmode cannot be ", modes]),
        (
            "sslrootcert=system&sslmode=require",
            ["sslmode cannot be require", "it must be `verify-full`"],
        ),
        (
            "sslnegotiation=quick",
            ["sslnegotiation cannot be quick", "`postgres` or `direct`"],
        ),
        (
            "sslnegotiation=direct",
            ["sslnegotiation cannot be direct", "sslmode=require"],
        ),
        (
            "sslmode=disable&sslnegotiation=direct",
            ["sslnegotiation cannot be direct", "sslmode=require"],
        ),
        (
            "sslmode=require&sslcert=/c.pem",
            ["sslcert cannot be /c.pem", "sslkey must name"],
        ),
        (
            "sslmode=require&sslkey=/c.key",
            ["sslkey cannot be /c.key", "sslcert must name"],
        ),
    ] {
        let refused = refusal(&format!("postgres://u@localhost/x?{options}"), &says).await;
        assert!(
            matches!(refused, LockError::InvalidOption { .. }),
            "{refused:?}"
        );
        let pairs = options
            .replace('&', " ")
            .replace("sslmode= ", "sslmode='' ");
        if !pairs.ends_with('=') {
            refusal(&format!("host=localhost user=u {pairs}"), &says).await;
        }
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let (server, _) = TlsServer::shared().await;
    let client = server.authority.client("certified");
    let text = server.file("text.pem", "not a certificate");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let broken = server.file("broken.pem", broken);
    let missing = server.cluster.dir().join("missing.pem");
    let missing = missing.display().to_string();
    let certificate = server.file("client.pem", &client.certificate);
    let key = server.file("another.key", &server.authority.client("certified").key);
    let pair = |certificate: &str, key: &str| format!("sslcert={certificate}&sslkey={key}");
    for (options, says) in [
        (
            format!("sslrootcert={missing}"),
            ["sslrootcert", "No such file", &missing],
        ),
        (
            format!("sslrootcert={text}"),
            ["sslrootcert", "no certificate in PEM form", &text],
        ),
        (
            format!("sslrootcert={broken}"),
            ["sslrootcert", "cannot be used", &broken],
        ),
        (pair(&missing, &key), ["sslcert", "No such file", &missing]),
        (
            pair(&certificate, &missing),
            ["sslkey", "No such file", &missing],
        ),
        (
            pair(&certificate, &text),
            ["sslkey", "cannot be used", &text],
        ),
        // The key of another certificate.
        (pair(&certificate, &key), ["sslkey", "cannot be used", &key]),
    ] {
        let url = format!("postgres://u@localhost/x?sslmode=require&{options}");
        let refused = refusal(&url, &says).await;
        assert!(matches!(refused, LockError::TlsFile { .. }), "{refused:?}");
    }
}
