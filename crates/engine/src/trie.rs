//! The labels as a trie of tokens.

use crate::{Error, Result};

/// A token on the way to one or more labels.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) token: u32,
    pub(crate) parent: usize,
    pub(crate) children: Vec<usize>,
    /// The label that ends with this token.
    pub(crate) label: Option<usize>,
    /// Share of all labels below.
    pub(crate) share: f32,
}

/// All labels' token sequences, each with its end token, as one trie.
///
/// Every sequence ends with the end token, which occurs nowhere else, so no label is the beginning of another.
#[derive(Debug, Clone)]
pub struct LabelTrie {
    pub(crate) nodes: Vec<Node>,
    labels: usize,
}

/// The root: no token, the query's last row predicts its children.
pub(crate) const ROOT: usize = 0;

impl LabelTrie {
    /// Builds the trie; `labels[i]` holds the tokens of label `i` with the end token.
    ///
    /// # Errors
    /// When a label has no tokens, or two labels have the same.
    pub fn new(labels: &[Vec<u32>]) -> Result<Self> {
        let mut nodes = vec![Node { token: 0, parent: ROOT, children: Vec::new(), label: None, share: 0.0 }];
        let mut counts = vec![0usize];
        for (label, tokens) in labels.iter().enumerate() {
            if tokens.is_empty() {
                return Err(Error::EmptyLabel { label });
            }
            let mut at = ROOT;
            counts[ROOT] += 1;
            for &token in tokens {
                let known = nodes[at].children.iter().copied().find(|&child| nodes[child].token == token);
                at = known.unwrap_or_else(|| {
                    nodes.push(Node { token, parent: at, children: Vec::new(), label: None, share: 0.0 });
                    counts.push(0);
                    let new = nodes.len() - 1;
                    nodes[at].children.push(new);
                    new
                });
                counts[at] += 1;
            }
            if let Some(first) = nodes[at].label.replace(label) {
                return Err(Error::SameLabel { first, second: label });
            }
        }
        for (node, count) in nodes.iter_mut().zip(counts) {
            node.share = count as f32 / labels.len() as f32;
        }
        Ok(Self { nodes, labels: labels.len() })
    }

    /// Number of labels.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// The labels that go through a node.
    pub(crate) fn labels_below(&self, node: usize) -> Vec<usize> {
        let (mut labels, mut open) = (Vec::new(), vec![node]);
        while let Some(node) = open.pop() {
            labels.extend(self.nodes[node].label);
            open.extend(&self.nodes[node].children);
        }
        labels
    }

    /// The tokens of a label in order, without the one that ends it.
    pub(crate) fn path(&self, label: usize) -> Vec<usize> {
        let end = self.nodes.iter().find(|node| node.label == Some(label));
        let mut at = end.map_or(ROOT, |end| end.parent);
        let mut path = Vec::new();
        while at != ROOT {
            path.push(at);
            at = self.nodes[at].parent;
        }
        path.reverse();
        path
    }

    /// Tokens of the longest label.
    pub fn depth(&self) -> usize {
        let mut depths = vec![0; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate().skip(1) {
            depths[index] = depths[node.parent] + 1;
        }
        depths.into_iter().max().unwrap_or(0)
    }

    /// Number of tokens in the trie.
    pub fn tokens(&self) -> usize {
        self.nodes.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_beginnings() {
        let trie = LabelTrie::new(&[vec![1, 2, 9], vec![1, 3, 9], vec![4, 9]]).unwrap();
        assert_eq!((trie.tokens(), trie.depth()), (7, 3));
        assert_eq!(trie.nodes[ROOT].children.len(), 2);
        assert_eq!(trie.nodes.iter().filter(|n| n.label.is_some()).count(), 3);
        let path: Vec<u32> = trie.path(1).into_iter().map(|node| trie.nodes[node].token).collect();
        assert_eq!(path, [1, 3]);
        assert!(LabelTrie::new(&[vec![9]]).unwrap().path(0).is_empty());
    }

    #[test]
    fn refuses_twins_and_empty_labels() {
        let twins = LabelTrie::new(&[vec![1, 9], vec![1, 9]]);
        assert!(matches!(twins, Err(Error::SameLabel { first: 0, second: 1 })));
        assert!(matches!(LabelTrie::new(&[vec![]]), Err(Error::EmptyLabel { label: 0 })));
    }
}
