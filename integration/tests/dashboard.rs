//! The dashboard asks for what the daemon has. (`scripts/dashboard` has a real Prometheus answer it.)
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;

use integration::binaries::project;
use integration::busybox::noise;
use integration::host::{Host, ON_DEMAND, small_layers};
use regex::Regex;
use serde_json::Value;

/// The queries of all panels.
fn queries() -> Vec<String> {
    let text = fs::read_to_string(project().join("docs/grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

/// Each metric that a query names, with the labels it is chosen by.
fn asked(query: &str) -> Vec<(String, Vec<(String, String)>)> {
    let metric = Regex::new(r"\b((?:soci_fs|process)_\w+)\{([^}]*)\}").unwrap();
    let label = Regex::new(r#"(\w+)(?:=~|!=|=)"([^"]*)""#).unwrap();
    let labels = |text: &str| {
        let found = label.captures_iter(text);
        found
            .map(|it| (it[1].to_owned(), it[2].to_owned()))
            // Prometheus adds this one.
            .filter(|(name, _)| name != "job")
            .collect()
    };
    let found = metric.captures_iter(query);
    found.map(|it| (it[1].to_owned(), labels(&it[2]))).collect()
}

#[test]
fn every_metric_and_every_label_of_the_dashboard_is_there_when_containers_run() {
    let host = Host::start(ON_DEMAND).unwrap();
    let content = noise(300_000);
    let lazy = host.publish_files("lazy", &[("file", &content)]).unwrap();
    let layout = host.layout("plain").unwrap();
    let layers = small_layers(&layout, &[("other", b"other\n")]).unwrap();
    let plain = host
        .publish_layers("plain", &layout, &layers, None)
        .unwrap();
    for image in [&lazy, &plain] {
        host.soci().unwrap().rpull(&image.reference).unwrap();
    }
    let start = ["run", "--detach", "--snapshotter", "soci", &lazy.reference];
    let start = [&start[..], &["reader", "sleep", "1000"]].concat();
    host.ctr().call(&start).unwrap();
    let read = [
        "tasks",
        "exec",
        "--exec-id",
        "read",
        "reader",
        "md5sum",
        "/file",
    ];
    host.ctr().call(&read).unwrap();
    let page = host.snapshotter.metrics().unwrap();

    let by = Regex::new(r"by \((\w+)\)").unwrap();
    let queries = queries();
    let mut metrics = BTreeSet::new();
    for query in &queries {
        let asked = asked(query);
        assert!(!asked.is_empty(), "{query}");
        for (metric, labels) in asked {
            let mut series: Vec<&str> = page
                .lines()
                .filter(|line| {
                    line.starts_with(&format!("{metric}{{"))
                        || line.starts_with(&format!("{metric} "))
                })
                .collect();
            assert!(
                !series.is_empty(),
                "{metric}, of {query}, is not in\n{page}"
            );
            for (name, value) in &labels {
                series.retain(|line| line.contains(&format!("{name}=\"")));
                assert!(
                    !series.is_empty(),
                    "no series of {metric} has the label {name}"
                );
                // Failures have none as long as nothing failed.
                let fails = value.contains("failure");
                let one_of: Vec<_> = value
                    .split('|')
                    .map(|it| format!("{name}=\"{it}\""))
                    .collect();
                let named = series
                    .iter()
                    .any(|line| one_of.iter().any(|it| line.contains(it)));
                assert!(
                    named || fails || value.is_empty(),
                    "{metric}: no {name} is {value}"
                );
            }
            metrics.insert(metric);
        }
        // What it is summed by has to be a label too.
        for by in by.captures_iter(query) {
            assert!(page.contains(&format!("{}=\"", &by[1])), "{query}");
        }
    }
    assert!(metrics.len() > 8, "{metrics:?}");
    host.finish().unwrap();
}
