use std::{fs, net::TcpListener, time::Duration};

use hub::Error;

use crate::{
    bench::{Bench, Told, bytes, names, waits},
    server::{Fault, ID, Side},
};

#[test]
fn a_later_pull_goes_on_where_a_broken_one_stopped() {
    let whole = bytes(50_000);
    let mut bench = Bench::with_gguf(&whole, true);
    bench.hub.backoff.tries = 1;
    bench.server.fail(Side::Cdn, "GET", "m.gguf", Fault::Cut(20_000));
    let error = bench.pull_gguf().unwrap_err();
    assert!(matches!(error, Error::GaveUp { tries: 1, .. }) && error.to_string().contains("kept"), "{error}");
    assert_eq!(fs::read(bench.incomplete("m.gguf")).unwrap(), whole[..20_000]);
    assert_eq!(bench.hub.find("org/repo:m.gguf").unwrap(), None);

    let mut told = Told::default();
    bench.hub.pull("org/repo:m.gguf", &mut told).unwrap();
    assert_eq!(told.0, [("m.gguf".to_owned(), Some(50_000), 50_000, true)]);
    assert_eq!(bench.pull_gguf().unwrap(), whole);
    let gets = bench.server.gets("m.gguf", Side::Cdn);
    assert_eq!((gets.len(), gets[1].header("range")), (2, Some("bytes=20000-")));
    assert_eq!(gets[1].header("if-range"), None, "the other origin has ETags of its own");
    assert_eq!(names(&bench.repository().join("blobs")), [bench.server.etag("m.gguf")]);
}

#[test]
fn a_break_within_a_pull_is_mended_with_a_conditional_range() {
    let whole = bytes(50_000);
    let bench = Bench::with_gguf(&whole, false);
    bench.server.fail(Side::Hub, "GET", "resolve-cache", Fault::Cut(20_000));
    assert_eq!(bench.pull_gguf().unwrap(), whole);
    assert_waits_up_to(&[1]);
    let last = bench.server.gets("m.gguf", Side::Hub).pop().unwrap();
    assert_eq!(last.header("range"), Some("bytes=20000-"));
    assert_eq!(last.header("if-range"), Some(format!("\"{}\"", bench.server.etag("m.gguf")).as_str()));
}

#[test]
fn breaks_that_bring_much_do_not_count_and_those_that_bring_little_do() {
    let whole = bytes(8 << 20);
    let mut bench = Bench::with_gguf(&whole, true);
    bench.hub.backoff.tries = 2;
    for _ in 0..6 {
        bench.server.fail(Side::Cdn, "GET", "m.gguf", Fault::Cut((1 << 20) + 1));
    }
    assert_eq!(bench.pull_gguf().unwrap(), whole);
    assert_waits_up_to(&[1; 6]);

    let mut bench = Bench::with_gguf(&whole, true);
    bench.hub.backoff.tries = 2;
    for _ in 0..2 {
        bench.server.fail(Side::Cdn, "GET", "m.gguf", Fault::Cut(1000));
    }
    assert!(matches!(bench.pull_gguf(), Err(Error::GaveUp { tries: 2, .. })));
}

#[test]
fn a_large_file_that_changes_half_way_starts_anew() {
    let new = [b"other".to_vec(), bytes(9500)].concat();
    let bench = Bench::with_gguf(&bytes(9000), true);
    bench.server.fail(Side::Cdn, "GET", "m.gguf", Fault::Cut(4000));
    bench.server.fail(Side::Hub, "GET", "m.gguf", Fault::Nothing);
    bench.server.fail(Side::Hub, "GET", "m.gguf", Fault::Change(new.clone()));
    assert_eq!(bench.pull_gguf().unwrap(), new);
    assert_eq!(names(&bench.repository().join("blobs")), [bench.server.etag("m.gguf")]);
}

#[test]
fn a_small_file_that_changes_half_way_starts_anew() {
    let new = [b"other".to_vec(), bytes(9500)].concat();
    let bench = Bench::with_gguf(&bytes(9000), false);
    bench.server.fail(Side::Hub, "GET", "resolve-cache", Fault::Cut(4000));
    bench.server.fail(Side::Hub, "GET", "resolve-cache", Fault::Change(new.clone()));
    assert_eq!(bench.pull_gguf().unwrap(), new);
    assert_eq!(names(&bench.repository().join("blobs")), [bench.server.etag("m.gguf")]);
}

#[test]
fn a_file_that_never_rests_is_given_up() {
    let bench = Bench::with_gguf(b"0", true);
    for other in [b"1", b"2", b"3"] {
        bench.server.fail(Side::Hub, "GET", "resolve/", Fault::Change(other.to_vec()));
    }
    assert!(matches!(bench.pull_gguf(), Err(Error::Unsteady { times: 3, .. })));
}

#[test]
fn damaged_leftovers_are_fetched_anew() {
    let whole = bytes(9000);
    for leftover in [vec![0; 4000], vec![0; 9000], vec![0; 9001]] {
        let bench = Bench::with_gguf(&whole, true);
        let incomplete = bench.incomplete("m.gguf");
        fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
        fs::write(&incomplete, &leftover).unwrap();
        assert_eq!(bench.pull_gguf().unwrap(), whole, "{} bytes left", leftover.len());
    }
}

#[test]
fn bytes_with_another_sha256_never_enter_the_cache() {
    let bench = Bench::with_gguf(&bytes(9000), true);
    bench.server.fail(Side::Cdn, "GET", "m.gguf", Fault::Flip);
    let error = bench.pull_gguf().unwrap_err();
    assert!(
        matches!(&error, Error::Checksum { expected, .. } if *expected == bench.server.etag("m.gguf")),
        "{error}"
    );
    assert!(names(&bench.repository().join("blobs")).is_empty());
    assert_eq!(bench.pull_gguf().unwrap(), bytes(9000));
}

#[test]
fn a_server_without_ranges_starts_from_the_beginning() {
    let whole = bytes(9000);
    let bench = Bench::with_gguf(&whole, true);
    bench.server.fail(Side::Cdn, "GET", "m.gguf", Fault::Cut(4000));
    bench.server.fail(Side::Cdn, "GET", "m.gguf", Fault::NoRanges);
    let mut told = Told::default();
    let path = bench.hub.pull("org/repo:m.gguf", &mut told).unwrap().path;
    assert_eq!(fs::read(path).unwrap(), whole);
    assert_eq!(told.0.last().unwrap().2, 9000, "counted once");
}

#[test]
fn a_range_that_was_not_asked_for_is_refused() {
    let bench = Bench::with_gguf(&bytes(9000), true);
    bench.server.fail(Side::Cdn, "GET", "m.gguf", Fault::Cut(4000));
    let shifted = Fault::With("Content-Range", "bytes 3999-8999/9000".to_owned());
    bench.server.fail(Side::Cdn, "GET", "m.gguf", shifted);
    let error = bench.pull_gguf().unwrap_err();
    assert!(matches!(&error, Error::Protocol { reason, .. } if reason.contains("3999")), "{error}");
    assert_eq!(fs::metadata(bench.incomplete("m.gguf")).unwrap().len(), 4000);
}

#[test]
fn more_bytes_than_announced_are_refused() {
    let bench = Bench::with_gguf(&bytes(9000), true);
    bench.server.fail(Side::Hub, "HEAD", "m.gguf", Fault::With("X-Linked-Size", "8999".to_owned()));
    let error = bench.pull_gguf().unwrap_err();
    assert!(matches!(&error, Error::Protocol { reason, .. } if reason.contains("8999")), "{error}");
    assert_eq!(fs::metadata(bench.incomplete("m.gguf")).unwrap().len(), 0);
}

#[test]
fn the_server_s_wait_is_kept_and_a_long_one_is_reported() {
    let busy = |seconds: &str| Fault::Status(429, vec![("Retry-After", seconds.to_owned())]);
    let bench = Bench::with_gguf(b"gguf", true);
    bench.server.fail(Side::Hub, "GET", "revision", busy("7"));
    bench.server.fail(Side::Hub, "HEAD", "m.gguf", busy("11"));
    bench.server.fail(Side::Cdn, "GET", "m.gguf", busy("13"));
    assert_eq!(bench.pull_gguf().unwrap(), b"gguf");
    assert_eq!(waits(), [7, 11, 13].map(Duration::from_secs));

    let bench = Bench::with_gguf(b"gguf", true);
    bench.server.fail(Side::Hub, "HEAD", "m.gguf", busy("3600"));
    assert!(matches!(bench.pull_gguf(), Err(Error::Busy { status: 429, wait_s: 3600, .. })));
    assert!(waits().is_empty());
}

/// The waits were these seconds, less up to half of each at random.
fn assert_waits_up_to(seconds: &[u64]) {
    let full: Vec<Duration> = seconds.iter().copied().map(Duration::from_secs).collect();
    let near = |(wait, full): (&Duration, &Duration)| *wait <= *full && *wait >= *full / 2;
    assert!(waits().len() == full.len() && waits().iter().zip(&full).all(near), "{:?}", waits());
}

#[test]
fn a_failing_server_is_asked_again_ever_later_and_then_given_up() {
    let mut bench = Bench::with_gguf(b"gguf", true);
    bench.hub.backoff.longest = Duration::from_secs(5);
    let fail = |times| {
        for _ in 0..times {
            bench.server.fail(Side::Hub, "HEAD", "m.gguf", Fault::Status(503, vec![]));
        }
    };
    fail(5);
    let error = bench.pull_gguf().unwrap_err();
    let Error::GaveUp { tries: 5, source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, Error::Status { status: 503, .. }));
    assert_waits_up_to(&[1, 2, 4, 5]);
    fail(4);
    assert_eq!(bench.pull_gguf().unwrap(), b"gguf");
}

#[test]
fn nobody_there_is_said_with_its_cause() {
    let mut bench = Bench::empty();
    // A port that was free a moment ago and has no listener now.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    bench.hub.endpoint = format!("http://{address}");
    let error = bench.pull(ID).unwrap_err();
    let Error::GaveUp { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, Error::Network { .. }), "{source}");
    assert!(
        error.to_string().contains("HTTPS_PROXY") && error.to_string().contains("pass the path"),
        "{error}"
    );
}

#[test]
fn a_silent_connection_counts_as_broken() {
    let mut bench = Bench::empty();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    bench.hub.endpoint = format!("http://{}", silent.local_addr().unwrap());
    (bench.hub.stall, bench.hub.backoff.tries) = (Duration::from_millis(5), 1);
    let error = bench.pull(ID).unwrap_err();
    let Error::GaveUp { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(&**source, Error::Network { source, .. } if source.is_timeout()), "{source}");
}
