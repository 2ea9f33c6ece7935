insert into bench.plain (tenant_id, document_id, source, title, content, embedding)
select d.tenant_id, d.document_id, d.source, d.title, c.text, c.vector::public.vector(384)
from bench.staged_chunk c
join bench.staged_document d on d.tenant_id = c.tenant_id and d.number = c.document;
