//! Options that cannot be used, and files that are not what they should be.

use tower_realm_lock::{ConfigError, ConnectError, RealmLocks};

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
            matches!(
                refused,
                ConnectError::Config(ConfigError::InvalidOption { .. })
            ),
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
        assert!(
            matches!(refused, ConnectError::Config(ConfigError::TlsFile { .. })),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn an_option_is_read_where_it_stands_and_nowhere_else() {
    // With an option that cannot be used: where it is read, it is refused.
    let is_read = |url: &str| {
        let refused = RealmLocks::postgres_builder(url).build_lazy().err();
        matches!(
            refused,
            Some(ConfigError::InvalidOption {
                option: "sslmode",
                ..
            })
        )
    };
    for url in [
        "postgres://u:p@h/d?sslmode=x",
        "postgres://u:p@h/d?user=a&%73slmode=x&application_name=s",
        "sslmode=x host=h",
        "host=h  sslmode = 'x' user=u",
        r"host=h password='a sslmode=y \' sslkey=y' sslmode=x",
        r"host=h password=a\ b sslmode=x\ y user=u",
        "host=h user=\u{fc} sslmode=x",
    ] {
        assert!(is_read(url), "{url}");
    }
    for url in [
        "postgres://u:p@h/d?application_name=sslmode%3Dx",
        "postgres://u:p@h/sslmode=x",
        "postgres://h?sslmode",
        r"host=h password='a sslmode=x \' sslmode=y'",
        r"host=h password=a\ sslmode=x",
        "host=h password='sslmode=x'",
        "sslmode='x host=h",
        "host=h sslmode",
        "host=h sslmode x=y",
    ] {
        assert!(!is_read(url), "{url}");
    }
}
