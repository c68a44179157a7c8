"""The steps that a document passes through on its way to token ids. Pure functions over whole Arrow batches: no Ray, no Kafka, no network.

decode     Kafka record -> document, retraction, or dead letter with a rule
normalize  one canonical spelling of the text
language   which language it is in
quality    length, repetition and character rules, each with a name
prepare    all of them in order, one row out for each row in
"""
