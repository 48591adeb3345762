//! The safetensors envelope: what the metadata key holds, and how a file is checked before use.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorView};
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::schemas::{check_content, newest_version, split_schema};
use crate::{Digest, Error, Payload, Result, Tensor, canonical_json, digest_json};

/// The only key of `__metadata__`; safetensors writes several keys in random order.
const METADATA_KEY: &str = "artifact";
/// The header of a safetensors file is at most this long, as in the format's own reader.
const LONGEST_HEADER: u64 = 100_000_000;

/// What an artifact says, without how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// Name and version, such as `dataset/1`.
    pub schema: String,
    /// Facts that are not tensors: class names, normalisation, architecture, recipe.
    pub facts: Value,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Content {
    /// The digest over schema, facts and tensors.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let encoded: BTreeMap<&str, (Dtype, &[usize], Vec<u8>)> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), (tensor.dtype(), tensor.shape(), tensor.to_bytes()))).collect();
        digest_parts(
            &self.schema,
            &self.facts,
            encoded.iter().map(|(name, (dtype, shape, bytes))| (*name, *dtype, *shape, bytes.as_slice())),
        )
    }
}

fn digest_parts<'a>(schema: &str, facts: &Value, tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize], &'a [u8])>) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let head = json!({ "schema": schema, "facts": facts });
    let mut field = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    field(canonical_json(&head).as_bytes());
    for (name, dtype, shape, bytes) in tensors {
        field(canonical_json(&json!([name, format!("{dtype:?}"), shape])).as_bytes());
        field(bytes);
    }
    hasher.finalize().into()
}

/// Who made an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Producer {
    /// The stage crate, such as `dcu-train`.
    #[serde(rename = "crate")]
    pub crate_name: String,
    /// The method, such as `fit`.
    pub method: String,
    /// The version of the method.
    pub version: u32,
}

/// How an artifact came about. Holds no time, host, user or path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Who made it.
    pub producer: Producer,
    /// The parameters with defaults filled in, locations left out.
    pub parameters: Value,
    /// The seed, where the method uses one.
    pub seed: Option<u64>,
    /// The content digests of the inputs, by name of the input.
    pub inputs: BTreeMap<String, Vec<Digest>>,
    /// The outside files that were read, by name and content.
    pub externals: BTreeMap<String, Digest>,
}

/// Name, type and shape of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorInfo {
    /// The tensor's name.
    pub name: String,
    /// The element type as safetensors names it, such as `F32`.
    pub dtype: String,
    /// The extent of each dimension.
    pub shape: Vec<usize>,
}

/// All of an artifact but the tensors' values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Header {
    /// Name and version, such as `dataset/1`.
    pub schema: String,
    /// Facts that are not tensors.
    pub facts: Value,
    /// How the artifact came about.
    pub provenance: Provenance,
    /// The content digest.
    pub digest: Digest,
    /// The tensors, sorted by name.
    pub tensors: Vec<TensorInfo>,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    schema: String,
    facts: Value,
    provenance: Provenance,
    content: Digest,
    seal: Option<Digest>,
}

/// What an outside program writes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bare {
    schema: String,
    facts: Value,
}

impl Envelope {
    fn seal(&self) -> Digest {
        digest_json(&json!({ "schema": self.schema, "facts": self.facts, "provenance": self.provenance, "content": self.content }))
    }
}

impl Header {
    /// Reads the header alone; the tensors' bytes are not looked at, so damage in them goes unnoticed (see [`verify`]).
    ///
    /// # Errors
    /// When the file cannot be read or its header is damaged or no artifact's.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |source| Error::io("read", path, source);
        check_kind(path)?;
        let mut file = std::fs::File::open(path).map_err(fail)?;
        let size = file.metadata().map_err(fail)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(|_| Error::damaged(path, format!("only {size} bytes, too short for a header")))?;
        let length = check_header_length(path, u64::from_le_bytes(length), size)?;
        let mut header = Vec::with_capacity(length);
        file.take(length as u64).read_to_end(&mut header).map_err(fail)?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| not_json(path, &error))?;
        let expected = (8 + length + metadata.data_len()) as u64;
        if expected != size {
            return Err(Error::damaged(path, format!("the header describes a file of {expected} bytes, but it has {size}")));
        }
        Self::from_metadata(path, &metadata)
    }

    fn from_metadata(path: &Path, metadata: &Metadata) -> Result<Self> {
        let text = envelope_text(path, metadata)?;
        let envelope: Envelope = serde_json::from_str(text)
            .map_err(|error| Error::NotAnArtifact { path: path.to_owned(), reason: format!("its metadata does not parse ({error})") })?;
        if envelope.seal.as_ref() != Some(&envelope.seal()) {
            return Err(Error::damaged(path, "the metadata does not match its seal"));
        }
        let mut tensors: Vec<TensorInfo> = metadata
            .tensors()
            .into_iter()
            .map(|(name, info)| TensorInfo { name, dtype: format!("{:?}", info.dtype), shape: info.shape.clone() })
            .collect();
        tensors.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(Self { schema: envelope.schema, facts: envelope.facts, provenance: envelope.provenance, digest: envelope.content, tensors })
    }
}

/// Reads a file whole and checks everything: header, seal, digest, and the rules of the schema that it names.
///
/// # Errors
/// When the file cannot be read, is damaged, is no artifact or breaks a rule of its schema.
pub fn verify(path: &Path) -> Result<Header> {
    let (header, content) = read_content(path)?;
    check_content(content).map_err(|reason| Error::Invalid { path: path.to_owned(), schema: header.schema.clone(), reason })?;
    Ok(header)
}

/// Reads an artifact of the schema of `P` after checking everything: header, seal, digest, schema, version, dtypes, shapes, ranges, finiteness.
///
/// # Errors
/// When the file cannot be read, is damaged, holds another schema or breaks a rule of its schema.
pub fn read<P: Payload>(path: &Path) -> Result<(P, Header)> {
    let header = Header::read(path)?;
    check_schema(path, P::SCHEMA, &header.schema)?;
    let (header, content) = read_content(path)?;
    let payload =
        P::from_content(content).map_err(|reason| Error::Invalid { path: path.to_owned(), schema: header.schema.clone(), reason })?;
    Ok((payload, header))
}

/// Takes over a file that an outside program wrote: a safetensors file whose metadata key `artifact` holds `{"schema": ..., "facts": ...}`,
/// or a whole artifact, such as the copy of an input. It is checked and written again as a whole artifact with this provenance.
///
/// # Errors
/// When the file cannot be read or written, or breaks a rule of the schema it names.
pub fn adopt(path: &Path, provenance: &Provenance) -> Result<Header> {
    let bytes = read_file(path)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| describe(path, &error))?;
    let content = match serde_json::from_str(envelope_text(path, &metadata)?) {
        Ok(Bare { schema, facts }) => {
            let file = SafeTensors::deserialize(&bytes).map_err(|error| describe(path, &error))?;
            Content { tensors: decode(path, &schema, file.iter())?, schema, facts }
        }
        Err(_) => read_content(path)?.1,
    };
    let invalid = |reason| Error::Invalid { path: path.to_owned(), schema: content.schema.clone(), reason };
    check_content(content.clone()).map_err(invalid)?;
    let (bytes, _) = encode(&content, provenance).map_err(invalid)?;
    crate::replace_file(path, &bytes)?;
    Header::read(path)
}

/// The bytes of what must be a plain file: opening a pipe would wait for ever.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    let fail = |source| Error::io("read", path, source);
    check_kind(path)?;
    let bytes = std::fs::read(path).map_err(fail)?;
    if let Some(length) = bytes.first_chunk::<8>() {
        check_header_length(path, u64::from_le_bytes(*length), bytes.len() as u64)?;
    }
    Ok(bytes)
}

fn check_kind(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(Error::NotAnArtifact { path: path.to_owned(), reason: "it is no plain file".into() }),
        Err(source) => Err(Error::io("read", path, source)),
    }
}

fn check_schema(path: &Path, expected: &str, found: &str) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let newer = match (split_schema(expected), split_schema(found)) {
        (Some((wanted, _)), Some((name, version))) if wanted == name => newest_version(name).is_some_and(|newest| version > newest),
        _ => false,
    };
    let (path, found, expected) = (path.to_owned(), found.to_owned(), expected.to_owned());
    Err(if newer { Error::NewerVersion { path, found, known: expected } } else { Error::WrongSchema { path, expected, found } })
}

fn read_content(path: &Path) -> Result<(Header, Content)> {
    let bytes = read_file(path)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| describe(path, &error))?;
    let header = Header::from_metadata(path, &metadata)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| describe(path, &error))?;
    let mut views: Vec<(&str, TensorView<'_>)> = file.iter().collect();
    views.sort_by_key(|(name, _)| *name);
    let digest =
        digest_parts(&header.schema, &header.facts, views.iter().map(|(name, view)| (*name, view.dtype(), view.shape(), view.data())));
    if digest != header.digest {
        return Err(Error::damaged(
            path,
            format!("its content has the digest {}, but its header says {}", digest.short(), header.digest.short()),
        ));
    }
    let tensors = decode(path, &header.schema, views.into_iter())?;
    let content = Content { schema: header.schema.clone(), facts: header.facts.clone(), tensors };
    Ok((header, content))
}

fn envelope_text<'a>(path: &Path, metadata: &'a Metadata) -> Result<&'a str> {
    metadata.metadata().as_ref().and_then(|map| map.get(METADATA_KEY)).map(String::as_str).ok_or_else(|| Error::NotAnArtifact {
        path: path.to_owned(),
        reason: format!("its safetensors metadata has no key `{METADATA_KEY}`"),
    })
}

fn decode<'a>(path: &Path, schema: &str, views: impl Iterator<Item = (&'a str, TensorView<'a>)>) -> Result<BTreeMap<String, Tensor>> {
    views
        .map(|(name, view)| {
            let tensor = Tensor::from_bytes(view.dtype(), view.shape().to_vec(), view.data()).ok_or_else(|| Error::Invalid {
                path: path.to_owned(),
                schema: schema.to_owned(),
                reason: format!(
                    "tensor `{name}` has the type {:?} and the shape {:?}, which no artifact holds",
                    view.dtype(),
                    view.shape()
                ),
            })?;
            Ok((name.to_owned(), tensor))
        })
        .collect()
}

pub(crate) fn encode(content: &Content, provenance: &Provenance) -> std::result::Result<(Vec<u8>, Digest), String> {
    let digest = content.digest();
    let mut envelope = Envelope {
        schema: content.schema.clone(),
        facts: content.facts.clone(),
        provenance: provenance.clone(),
        content: digest.clone(),
        seal: None,
    };
    envelope.seal = Some(envelope.seal());
    let metadata = canonical_json(&serde_json::to_value(&envelope).map_err(|error| error.to_string())?);
    let encoded: Vec<(&String, Dtype, &[usize], Vec<u8>)> =
        content.tensors.iter().map(|(name, tensor)| (name, tensor.dtype(), tensor.shape(), tensor.to_bytes())).collect();
    let views: Vec<(&String, TensorView<'_>)> = encoded
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((*name, TensorView::new(*dtype, shape.to_vec(), bytes)?)))
        .collect::<std::result::Result<_, SafeTensorError>>()
        .map_err(|error| error.to_string())?;
    let bytes =
        safetensors::serialize(views, Some(HashMap::from([(METADATA_KEY.to_owned(), metadata)]))).map_err(|error| error.to_string())?;
    Ok((bytes, digest))
}

fn check_header_length(path: &Path, length: u64, size: u64) -> Result<usize> {
    if length > LONGEST_HEADER {
        return Err(Error::damaged(path, format!("the header claims {length} bytes, more than the {LONGEST_HEADER} allowed")));
    }
    if length + 8 > size {
        return Err(Error::damaged(path, format!("the header claims {length} bytes, but the file has only {size}: it was cut short")));
    }
    Ok(usize::try_from(length).expect("at most LONGEST_HEADER"))
}

fn not_json(path: &Path, error: &serde_json::Error) -> Error {
    Error::damaged(path, format!("the header does not parse ({error})"))
}

fn describe(path: &Path, error: &SafeTensorError) -> Error {
    let reason = match error {
        SafeTensorError::HeaderTooSmall => "too short for a header".into(),
        SafeTensorError::InvalidHeaderDeserialization(error) => return not_json(path, error),
        SafeTensorError::MetadataIncompleteBuffer => "the tensors do not fill the file: it was cut short or added to".into(),
        other => other.to_string(),
    };
    Error::damaged(path, reason)
}
