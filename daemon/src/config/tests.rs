#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> (Config, Vec<UnknownKey>) {
    Config::parse(text, Path::new("c.toml")).unwrap()
}

fn refused(text: &str) -> String {
    Config::parse(text, Path::new("c.toml"))
        .unwrap_err()
        .to_string()
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    let text = Config::default().to_toml().unwrap();
    let (config, unknown) = parse(&text);
    assert_eq!(config, Config::default());
    assert_eq!(unknown, []);
    assert!(text.contains("DialTimeoutMsec = 3000"), "{text}");
    assert!(
        text.contains("[pull_modes.soci_v2]\nenable = true"),
        "{text}"
    );
}

#[test]
fn the_file_we_ship_is_the_printed_defaults() {
    let shipped = include_str!("../../config.toml");
    assert_eq!(shipped, Config::default().to_toml().unwrap());
}

#[test]
fn every_key_is_explained_in_the_documents() {
    fn keys(table: &toml::Table, found: &mut Vec<String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(inner) => keys(inner, found),
                _ => found.push(key.clone()),
            }
        }
    }
    let mut found = Vec::new();
    let defaults: toml::Table = Config::default().to_toml().unwrap().parse().unwrap();
    keys(&defaults, &mut found);
    assert!(found.len() > 50);
    let documents = concat!(
        include_str!("../../../docs/configure.md"),
        include_str!("../../../docs/registries.md"),
        include_str!("../../../docs/migrate.md")
    );
    found.retain(|key| !documents.contains(&**key));
    assert_eq!(found, [""; 0], "are in no document");
}

#[test]
fn the_settings_that_the_documents_show_are_settings() {
    let documents = [
        include_str!("../../../docs/configure.md"),
        include_str!("../../../docs/registries.md"),
        include_str!("../../../docs/cache.md"),
    ];
    let mut shown = 0;
    for document in documents {
        for block in document.split("```toml").skip(1) {
            let block = block.split("```").next().unwrap();
            // Those of containerd say whose they are.
            if block.contains("hosts.toml") || block.contains("containerd/config.toml") {
                continue;
            }
            assert_eq!(parse(block).1, [], "{block}");
            shown += 1;
        }
    }
    assert!(shown > 2, "{shown}");
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(parse("").0, Config::default());
    assert_eq!(Config::default().blob.max_retries, 8);
}

#[test]
fn the_case_of_keys_does_not_matter() {
    let (config, unknown) = parse(
        "Metrics_Address = 'A:1'\n[HTTP]\ndialtimeoutmsec = 7\nMaxRetries = 2\n\
         [Resolver.Host.'R:5000']\nMirrors = [{Host = 'M', INSECURE = true}]\n",
    );
    assert_eq!(unknown, []);
    assert_eq!(config.metrics_address, "A:1");
    assert_eq!(config.http.dial_timeout_msec, 7);
    assert_eq!(config.blob.max_retries, 2);
    let mirror = &config.resolver.host["r:5000"].mirrors[0];
    assert_eq!((mirror.host.as_str(), mirror.insecure), ("M", true));
}

#[test]
fn zero_stands_for_the_default() {
    let (config, _) = parse(
        "max_concurrency = 0\nresolve_result_entry = 0\n[fuse]\nattr_timeout = 0\n\
         [blob]\nmax_retries = 0\n[http]\nMaxRetries = 3\n",
    );
    assert_eq!(config.max_concurrency, 100);
    assert_eq!(config.resolve_result_entry, 30);
    assert_eq!(config.fuse.attr_timeout, 1);
    assert_eq!(config.blob.max_retries, 3);
}

#[test]
fn unknown_keys_are_reported_with_their_lines() {
    let (config, unknown) = parse("debug = true\nnonsense = 1\n[fuse]\nx = 2\n[whole]\ny = 1\n");
    assert!(config.debug);
    let found: Vec<(&str, usize)> = unknown
        .iter()
        .map(|unknown| (unknown.key.as_str(), unknown.line))
        .collect();
    assert_eq!(found, [("fuse.x", 4), ("nonsense", 2), ("whole", 5)]);
}

#[test]
fn what_is_malformed_is_refused_with_file_and_line() {
    for (text, start) in [
        ("a = \n", "c.toml:1: "),
        ("\n\nmax_concurrency = 'x'\n", "c.toml:3: "),
        ("[blob]\nvalid_interval = -1\n", "c.toml:2: "),
        ("metadata_store = 'other'\n", "c.toml:1: "),
        ("debug = true\nDEBUG = false\n", "c.toml:2: "),
        (
            "[pull_modes.parallel_pull_unpack]\nconcurrent_download_chunk_size = '8x'\n",
            "c.toml:2: ",
        ),
    ] {
        let error = refused(text);
        assert!(error.starts_with(start), "{text:?}: {error}");
    }
}

#[test]
fn an_image_cannot_download_more_than_all_images_may() {
    let error = refused(
        "[pull_modes.parallel_pull_unpack]\nenable = true\nmax_concurrent_downloads = 2\n\
         max_concurrent_downloads_per_image = 3\n",
    );
    assert!(
        error.contains("max_concurrent_downloads_per_image (3)"),
        "{error}"
    );
}

#[test]
fn an_external_decompressor_is_checked() {
    let stream = |line: &str| {
        format!(
            "[pull_modes.parallel_pull_unpack]\nenable = true\n\
             [pull_modes.parallel_pull_unpack.decompress_streams.gzip]\n{line}\n"
        )
    };
    let (config, _) = parse(&stream("path = '/usr/bin/pigz'\nargs = ['-d', '-c']"));
    let streams = &config.pull_modes.parallel_pull_unpack.decompress_streams;
    assert_eq!(streams["gzip"].args, ["-d", "-c"]);
    assert!(refused(&stream("path = 'pigz'")).contains("absolute"));
    assert!(refused(&stream("path = '/p'\nargs = ['a;b']")).contains("a;b"));
}

#[test]
fn a_collector_is_an_address_of_http_and_has_the_usual_path() {
    let url = |endpoint: &str| {
        let (config, _) = parse(&format!("[traces]\nendpoint = '{endpoint}'\n"));
        config.traces.url().unwrap().map(String::from)
    };
    assert_eq!(url(""), None);
    assert_eq!(
        url("http://127.0.0.1:4318").unwrap(),
        "http://127.0.0.1:4318/v1/traces"
    );
    assert_eq!(url("https://c/otlp").unwrap(), "https://c/otlp");
    for wrong in ["endpoint = '127.0.0.1:4318'", "sample_percent = 101"] {
        let error = refused(&format!("[traces]\n{wrong}\n"));
        assert!(error.starts_with("c.toml: traces."), "{error}");
    }
}

#[test]
fn sizes_are_read_with_their_units() {
    let size = |text: &str| ByteSize::try_from(text.to_owned()).map(|size| size.bytes);
    assert_eq!(size(""), Ok(0));
    assert_eq!(size("12"), Ok(12));
    assert_eq!(size("8 MB"), Ok(8 << 20));
    assert_eq!(size("1gb"), Ok(1 << 30));
    for text in ["mb", "-1", "1tb", "99999999999gb", "1.5mb"] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn only_the_default_file_may_be_missing() {
    let missing = Config::load(Some(Path::new("/nonexistent/config.toml")));
    assert!(matches!(missing, Err(ConfigError::Read { .. })));
}

proptest! {
    #[test]
    fn no_text_brings_the_parser_down(text in "[a-z_\\[\\]='\"\n.0-9{},# ]{0,80}") {
        let _ = Config::parse(&text, Path::new("c.toml"));
    }
}
