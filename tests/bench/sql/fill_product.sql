-- documents
insert into rag.document (
    tenant_id, document_id, source, title, media_type, metadata, content_hash, text, chunks, ordinal, audience
)
select
    d.tenant_id, d.document_id, d.source, d.title, 'text/markdown', '{}', sha256(convert_to(d.source, 'UTF8')),
    d.text, d.chunks, d.ordinal, 0
from bench.staged_document d
where d.tenant_id = $1
order by d.ordinal;

-- chunks
insert into rag.chunk (tenant_id, chunk_id, document_id, number, start_char, end_char, heading, text, audience)
select
    c.tenant_id, d.ordinal << 20 | c.number, d.document_id, c.number, c.start_char, c.end_char, c.heading, c.text, 0
from bench.staged_chunk c
join bench.staged_document d on d.tenant_id = c.tenant_id and d.number = c.document
where c.tenant_id = $1
order by d.ordinal, c.number;

-- vectors
insert into rag.embedding (tenant_id, model_id, chunk_id, document_id, vector, audience)
select c.tenant_id, m.model_id, d.ordinal << 20 | c.number, d.document_id, c.vector, 0
from rag.embedding_model m
cross join bench.staged_chunk c
join bench.staged_document d on d.tenant_id = c.tenant_id and d.number = c.document
where c.tenant_id = $1
order by d.ordinal, c.number;

-- postings
select rag.index_ordinals_v1($1, array_agg(d.ordinal))
from bench.staged_document d
where d.tenant_id = $1;
