use std::io::Write;
use std::sync::Arc;

use super::*;
use crate::Origin;

/// Rows of three departments, each of its own words.
fn rows() -> Vec<Example> {
    let words = [
        ("cards", ["card stolen", "card lost", "block the card", "card swallowed"]),
        ("loans", ["loan rate", "loan too dear", "repay the loan", "borrow with a loan"]),
        ("travel", ["flight delayed", "luggage lost on the flight", "cancel the flight", "book a flight"]),
    ];
    let middles = [
        "yesterday",
        "at the station",
        "for my mother",
        "in the evening",
        "this week",
        "abroad",
        "again",
        "online",
    ];
    let ends = ["what now", "please help", "is that right", "how does it work"];
    let file: Arc<Path> = Arc::from(Path::new("rows.csv"));
    let mut rows = Vec::new();
    for (label, starts) in words {
        for start in starts {
            for (middle, end) in middles.iter().zip(ends.iter().cycle()) {
                let line = rows.len() as u64 + 2;
                rows.push(Example::new(format!("{start} {middle} {end}"), label, Origin::line(&file, line)));
            }
        }
    }
    rows
}

#[test]
fn wrong_labels_are_found_and_few_others() {
    let mut rows = rows();
    let wrong = [3, 21, 40, 58, 77, 90];
    for &row in &wrong {
        rows[row].label = if rows[row].label == "cards" { "loans" } else { "cards" }.to_owned();
    }
    let found = find(&rows, 0).unwrap();
    assert_eq!(found, find(&rows, 0).unwrap());
    let named: Vec<usize> = found.iter().map(|suspect| suspect.row - 1).collect();
    let hits = wrong.iter().filter(|row| named.contains(row)).count();
    assert!(hits >= 5, "{hits} of 6 were found: {named:?}");
    assert!(named.len() <= 8, "{named:?}");
    assert!(found.is_sorted_by(|a, b| a.confidence >= b.confidence));
    let at_58 = found.iter().find(|suspect| suspect.row == 59).unwrap();
    assert_eq!((at_58.label.as_str(), at_58.suggested.as_str()), ("cards", "loans"));
}

#[test]
fn near_copies_with_another_label_are_suspects() {
    let file: Arc<Path> = Arc::from(Path::new("rows.csv"));
    let row = |text: &str, label: &str| Example::new(text, label, Origin::line(&file, 1));
    let text = "I cannot find the card that your bank sent to me last week";
    let rows = [
        row(text, "cards"),
        row(&format!("{text}!"), "cards"),
        row(&format!("{text}s"), "travel"),
        row("an entirely different question about loans", "loans"),
    ];
    let [suspect] = &find(&rows, 0).unwrap()[..] else {
        panic!("one row is out of line: {:?}", find(&rows, 0).unwrap())
    };
    assert_eq!((suspect.row, suspect.suggested.as_str(), suspect.reason), (3, "cards", Reason::NearCopy));
    assert!((suspect.confidence - 2.0 / 3.0).abs() < 1e-12);
}

#[test]
fn corrections_are_applied_whole_or_not_at_all() {
    let file = |suspects: &[Suspect]| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for suspect in suspects {
            writeln!(file, "{}", serde_json::to_string(suspect).unwrap()).unwrap();
        }
        file
    };
    let before = rows();
    let suspect = |row: usize| Suspect {
        row,
        text: before[row - 1].text.clone(),
        label: before[row - 1].label.clone(),
        suggested: "loans".into(),
        confidence: 0.9,
        reason: Reason::OutOfFold,
        corrected: None,
        remove: false,
    };
    let mut decided = vec![suspect(1), suspect(2), suspect(3), suspect(4)];
    decided[0].corrected = Some(" loans ".into());
    decided[1].remove = true;
    decided[2].corrected = Some(before[2].label.clone());
    let written = file(&decided);
    let read = read(written.path()).unwrap();
    assert_eq!(read, decided);
    let mut after = before.clone();
    let done = apply(&mut after, &read, written.path()).unwrap();
    assert_eq!((done.relabelled, done.removed, done.kept), (1, 1, 2));
    assert_eq!(
        (after.len(), after[0].label.as_str(), &after[1].text),
        (before.len() - 1, "loans", &before[2].text)
    );

    decided[3].text.push_str(" edited");
    let mut untouched = before.clone();
    let error = apply(&mut untouched, &decided, written.path()).unwrap_err();
    assert!(error.to_string().contains("line 4") && error.to_string().contains("row 4"), "{error}");
    assert_eq!(untouched, before);
    decided[3] = Suspect { corrected: Some(" ".into()), ..suspect(4) };
    assert!(apply(&mut untouched, &decided, written.path()).unwrap_err().to_string().contains("empty"));
    let mut broken = tempfile::NamedTempFile::new().unwrap();
    writeln!(broken, "{}\n{{\"row\": 2}}", serde_json::to_string(&suspect(1)).unwrap()).unwrap();
    assert!(super::read(broken.path()).unwrap_err().to_string().contains("line 2"));
}

#[test]
fn a_file_too_small_to_judge_has_no_suspects() {
    assert_eq!(find(&[], 0).unwrap(), []);
    assert_eq!(find(&rows()[..2], 0).unwrap(), []);
}
