//! One file into the cache: resumed, checked, and whole or not there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
};

use reqwest::{StatusCode, Url, header::CONTENT_RANGE};
use sha2::{Digest, Sha256};
use wire::shown;

use crate::{
    cache::RepositoryCache,
    client::{Client, Fault, Reply, broken, protocol},
    error::{Error, Result},
    lock,
    progress::Progress,
};

/// A try that brought this many bytes before it broke is progress, however many have broken before.
const ENOUGH: u64 = 1 << 20;

/// A file on the hub.
pub(crate) struct Remote {
    pub(crate) file: String,
    /// The file for people.
    pub(crate) what: String,
    pub(crate) url: Url,
    /// The name of its blob: for large files the SHA-256 of the bytes.
    pub(crate) etag: String,
    pub(crate) size: u64,
}

impl Remote {
    /// The bytes that are not on this disk yet.
    pub(crate) fn still_needed(&self, cache: &RepositoryCache) -> u64 {
        if cache.blob(&self.etag).exists() {
            return 0;
        }
        self.size.saturating_sub(fs::metadata(cache.incomplete(&self.etag)).map_or(0, |m| m.len()))
    }

    /// The SHA-256 that the bytes must have, where the `ETag` is one.
    fn sha256(&self) -> Option<&str> {
        (self.etag.len() == 64 && self.etag.bytes().all(|b| b.is_ascii_hexdigit())).then_some(&self.etag)
    }
}

/// How a download ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The blob is whole.
    Whole,
    /// The server has another file there now.
    Changed,
}

/// Brings the blob of `remote` into the cache, going on where an earlier download stopped.
pub(crate) async fn fetch(
    client: &Client<'_>,
    cache: &RepositoryCache,
    remote: &Remote,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    let (blob, incomplete) = (cache.blob(&remote.etag), cache.incomplete(&remote.etag));
    let _lock = lock::acquire(&cache.lock(&remote.etag), progress)?;
    if blob.exists() {
        return Ok(Outcome::Whole);
    }
    // What an earlier run left may be damaged: then a whole download gets one more chance.
    let mut resumed = incomplete.exists();
    loop {
        progress.start(&remote.file, Some(remote.size));
        let outcome = receive(client, remote, &incomplete, progress).await;
        progress.finish();
        if outcome? == Outcome::Changed {
            remove(&incomplete)?;
            return Ok(Outcome::Changed);
        }
        match verify(&incomplete, remote)? {
            Ok(()) => break,
            Err(error) => {
                remove(&incomplete)?;
                if !resumed {
                    return Err(error);
                }
                resumed = false;
            }
        }
    }
    fs::rename(&incomplete, &blob).map_err(Error::write(&blob))?;
    Ok(Outcome::Whole)
}

/// Appends to the incomplete file until it has its size.
async fn receive(
    client: &Client<'_>,
    remote: &Remote,
    incomplete: &Path,
    progress: &mut dyn Progress,
) -> Result<Outcome> {
    let file =
        OpenOptions::new().create(true).append(true).open(incomplete).map_err(Error::write(incomplete))?;
    let length = file.metadata().map_err(Error::read(incomplete))?.len();
    let mut part = Part { file, path: incomplete, length };
    if part.length > remote.size {
        part.clear()?;
    }
    progress.advance(part.length);
    let outcome = client
        .retry(&remote.url, async || {
            if part.length == remote.size {
                return Ok(Outcome::Whole);
            }
            let resume = (part.length > 0).then_some((part.length, remote.etag.as_str()));
            let reply = client.get(&remote.url, resume, &remote.what).await?;
            let before = part.length;
            match append(&mut part, remote, reply, progress).await {
                Err(Fault::Passing(error, _)) if part.length >= before + ENOUGH => {
                    Err(Fault::Advanced(error))
                }
                other => other,
            }
        })
        .await?;
    part.file.sync_all().map_err(Error::write(incomplete))?;
    Ok(outcome)
}

/// Appends one answer's bytes.
async fn append(
    part: &mut Part<'_>,
    remote: &Remote,
    reply: Reply,
    progress: &mut dyn Progress,
) -> Result<Outcome, Fault> {
    let Reply { mut response, facts } = reply;
    if facts.etag.is_some_and(|etag| etag != remote.etag) {
        return Ok(Outcome::Changed);
    }
    let restart = match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let expected = format!("bytes {}-{}/{}", part.length, remote.size - 1, remote.size);
            if range != Some(&expected) {
                let reason = format!("it sent the range `{}` for `{expected}`", range.unwrap_or_default());
                return Err(protocol(&remote.url, reason).into());
            }
            false
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            part.clear()?;
            return Err(Fault::Passing(protocol(&remote.url, "it has no such range of the file"), None));
        }
        // The server does not give ranges: from the beginning, then.
        _ => part.length > 0,
    };
    if restart {
        part.clear()?;
        progress.finish();
        progress.start(&remote.file, Some(remote.size));
    }
    while let Some(chunk) = response.chunk().await.map_err(|source| broken(&remote.url, source))? {
        let bytes = chunk.len() as u64;
        if part.length + bytes > remote.size {
            part.clear()?;
            return Err(protocol(
                &remote.url,
                format!("it sent more than the {} bytes announced", remote.size),
            )
            .into());
        }
        part.write(&chunk)?;
        progress.advance(bytes);
    }
    if part.length < remote.size {
        let (url, expected, found) = (shown(&remote.url), remote.size, part.length);
        return Err(Fault::Passing(Error::CutShort { url, expected, found }, None));
    }
    Ok(Outcome::Whole)
}

/// The file while it arrives.
struct Part<'p> {
    file: File,
    path: &'p Path,
    length: u64,
}

impl Part<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::write(self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::write(self.path))?;
        self.length = 0;
        Ok(())
    }
}

/// Compares the bytes with the SHA-256 that the `ETag` gives; a file without one has its size checked by now.
fn verify(path: &Path, remote: &Remote) -> Result<Result<()>> {
    let Some(expected) = remote.sha256() else { return Ok(Ok(())) };
    let found = sha256(File::open(path).map_err(Error::read(path))?).map_err(Error::read(path))?;
    Ok(if found.eq_ignore_ascii_case(expected) {
        Ok(())
    } else {
        Err(Error::Checksum { what: remote.what.clone(), expected: expected.to_owned(), found })
    })
}

/// The SHA-256 of all bytes, in lower-case hexadecimal.
pub(crate) fn sha256(mut bytes: impl io::Read) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut bytes, &mut hash)?;
    Ok(format!("{:x}", hash.finalize()))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(Error::write(path))
}
